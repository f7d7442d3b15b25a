"""Create the inputs of the benchmarks: files of phantoms, embeddings, and random networks."""

from pathlib import Path

import keras
import numpy as np
from PIL import Image

from benchmarks.config import Benchmark
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import loading
from cxr_tf.data.sources.phantoms import FINDINGS, phantom
from cxr_tf.errors import UserError
from cxr_tf.models import backbones
from cxr_tf.models import weights as models_weights
from cxr_tf.models.classifier import build_classifier
from cxr_tf.serving import export
from cxr_tf.serving import loading as serving_loading

BATCH = 32

# Width and height of a radiograph as published.
ORIGINAL_SIZE = (1300, 900)

SMALL_SIZE = 224


def embeddings(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate embeddings float32 [count, width] like a backbone's, and labels int64 [count].

    The embeddings are non-negative, with 32 latent dimensions and noise; the classes overlap.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    hidden = rng.normal(size=(count, 32)) + 0.4 * rng.normal(size=(2, 32))[labels]
    values = hidden @ rng.normal(size=(32, width)) + rng.normal(size=(count, width))
    return np.maximum(values, 0).astype(np.float32), labels


def catalog_of(splits: list[str]) -> data_catalog.Catalog:
    """Return a catalogue in which only the splits are meaningful."""
    rows = tuple(
        data_catalog.Radiograph(
            path=f"{k}.png", finding="normal", patient=str(k), split=s, digest=""
        )
        for k, s in enumerate(splits)
    )
    return data_catalog.Catalog("made up", rows, ("normal", "pneumonia"))


def radiographs(settings: Benchmark, place: Path, times: int = 1) -> Path:
    """Create <place>/radiographs-<count>/{train,val}/{NORMAL,PNEUMONIA}/ once, and return it.

    The folder contains `times` x --images images, half of each class: links to files of --data (as
    many as there are), or phantoms as 8-bit grey JPEGs of 1300 x 900 pixels and 200 kB, like the
    radiographs of the Kermany data. Raises UserError if a split of --data lacks a class.
    """
    images = times * settings.images
    root = place / f"radiographs-{images}"
    if root.exists():
        return root
    parts = {"train": images * 3 // 4, "val": images - images * 3 // 4}
    if settings.data:
        catalog = loading.open_catalog(settings.data, seed=settings.seed)
        labels = catalog.labels("binary")
        for split, count in parts.items():
            rows = catalog.rows(split)
            for k, name in enumerate(("NORMAL", "PNEUMONIA")):
                chosen = [i for i in rows if labels[i] == k][: count // 2]
                if not chosen:
                    raise UserError(
                        f"{settings.data}: no {name.lower()} radiograph in the {split} split; the "
                        "benchmarks need both classes in train and val"
                    )
                (root / split / name).mkdir(parents=True)
                for i in chosen:
                    path = Path(catalog.paths[i]).resolve()
                    (root / split / name / f"{i:06d}{path.suffix}").symlink_to(path)
        return root
    rng = np.random.default_rng(settings.seed)
    number = 0
    for split, count in parts.items():
        # A few phantoms with many exposures: drawing each one anew takes longer than the benchmark.
        drawn = [
            phantom(FINDINGS[k % 2], seed=settings.seed, patient=number + k, size=512).image
            for k in range(min(count, 8))
        ]
        for k in range(count):
            name = ("NORMAL", "PNEUMONIA")[k % len(drawn) % 2]
            (root / split / name).mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(drawn[k % len(drawn)]).resize(ORIGINAL_SIZE)
            noisy = np.asarray(large, np.float32) * rng.uniform(0.9, 1.0)
            noisy += rng.normal(0, 3, noisy.shape).astype(np.float32)
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
                root / split / name / f"phantom{number:05d}.jpeg", quality=90
            )
            number += 1
    return root


def small_files(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` grey JPEGs of 224 x 224 pixels and 10 kB to <folder>/{NORMAL,PNEUMONIA}/.

    The images are shifted copies of eight phantoms, no two of them equal. Existing files are kept.
    Returns the paths, with alternating classes.
    """
    drawn = [
        phantom(FINDINGS[k % 2], seed=seed, patient=k, size=SMALL_SIZE).image for k in range(8)
    ]
    paths = []
    for k in range(count):
        path = folder / ("NORMAL", "PNEUMONIA")[k % 2] / f"phantom{k:05d}.jpeg"
        paths.append(str(path))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            down, right = divmod(k // len(drawn), SMALL_SIZE)
            moved = np.roll(drawn[k % len(drawn)], (down, right), axis=(0, 1))
            Image.fromarray(moved).save(path, quality=90)
    return paths


def plain_classifier(name: str, image: np.ndarray) -> keras.Model:
    """Build a classifier with the backbone's original preprocessing, without standardisation.

    The weights are random; the last layer is scaled so that the probabilities of `image`, float32
    [1, S, S, 3], are far from 0 and 1.
    """
    images = keras.Input(image.shape[1:], name="images")
    features = backbones.backbone(name).features(images)
    logits = keras.layers.Dense(2, name="logits")(features)
    model = keras.Model(images, keras.layers.Softmax(name="probabilities")(logits))
    models_weights.load_weights(model, name, "none")
    spread_logits(model, image)
    return model


def set_norm_statistics(model: keras.Model, images: np.ndarray) -> None:
    """Set the statistics of BatchNorm layers to those of `images`, float32 [N, S, S, 3].

    With the initial statistics, features double from block to block of a ResNet.
    """
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = [(x.trainable, x.momentum) for x in norms]
    for layer in norms:
        layer.trainable, layer.momentum = True, 0.0
    if norms:
        model(images, training=True)
    for layer, (trainable, momentum) in zip(norms, before, strict=True):
        layer.trainable, layer.momentum = trainable, momentum


def spread_logits(model: keras.Model, images: np.ndarray) -> None:
    """Scale the last kernel so that the logits of an image differ by 1 on average.

    Saturated probabilities would be equal whatever the implementations compute.
    """
    layer = model.get_layer("logits")
    features = np.asarray(keras.Model(model.input, layer.input)(images, training=False))
    apart = np.ptp(features @ np.asarray(layer.kernel), axis=1).mean()
    layer.kernel.assign(layer.kernel / apart)


def exported(
    name: str, settings: Benchmark, place: Path
) -> tuple[keras.Model, serving_loading.ServedModel]:
    """Return a classifier and its SavedModel, which is exported once.

    The weights are random, except for VGG16, which has those of --vgg16-weights.
    """
    keras.utils.set_random_seed(settings.seed)  # so that it is the same model for every job
    model = build_classifier(name, classes=2, image_size=settings.image_size)
    weights = settings.vgg16_weights if name == "vgg16" else "none"
    models_weights.load_weights(model, name, weights)
    drawn = phantom("viral", seed=settings.seed, patient=1, size=settings.image_size).image
    spread_logits(model, np.repeat(drawn[None, ..., None], 3, 3).astype(np.float32))
    base, classes = place / "saved_models" / name, ("normal", "pneumonia")
    if not base.exists():
        export.export_classifier(
            model,
            base,
            classes=classes,
            threshold=0.5,
            card={"kind": "classifier", "classes": list(classes)},
        )
    return model, serving_loading.load_served(str(base))
