"""Variants of the autoencoder on the same data: what the default is made of, and what was left out.

    material = make_material(settings, healthy, val)
    for name, rows in variants(material, feature_maps(settings)).items():
        for row, scores in rows(): ...

Every row is an anomaly score: `alone`, and `joined` with the context of healthy lungs as the
default joins the two. Networks are trained on healthy images of the train split, with the same
number of steps but for one, which is trained longer.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import anomaly, training
from cxr_tf.data import exposures, opacities, phantom, pipeline
from cxr_tf.data.contrast import WINDOW, local_contrast
from cxr_tf.errors import UserError
from cxr_tf.evaluation import Data
from cxr_tf.models import autoencoder, backbones
from cxr_tf.models.classifier import build_classifier
from cxr_tf.models.context import HealthyContext
from cxr_tf.settings import LARGEST_SEED, CompareAutoencoders, TrainAutoencoder

DEFAULT, NEXT_SEED = "default", "the next seed"

# A side of the image is this many cells when they are covered in turn.
CELLS = 8

# Numbers that a linear autoencoder of features squeezes an image into.
FEATURE_CODE = 400

# Healthy images that features are taken of, evenly: each is a third of a megabyte of them.
MOST_FEATURED = 2000


@dataclass(frozen=True)
class Row:
    """Anomaly scores float32 [N] of the validation images, and the seconds they took to learn."""

    alone: np.ndarray | None
    joined: np.ndarray | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Material:
    """What all variants are made from and judged on.

    healthy: the healthy images of the train split; seen and lungs: uint8 [N, T, T, 1], those as the
    networks see them, and where their lungs are.
    """

    settings: CompareAutoencoders
    healthy: Data
    seen: np.ndarray
    lungs: np.ndarray
    val: Data
    context: HealthyContext

    @property
    def epochs(self) -> int:
        """Of a network's training."""
        assert self.settings.epochs is not None
        return self.settings.epochs

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """Validation images, then the healthy ones of them in three versions, which set the scale
        of a joined score: float32 [M, T, T, 1], as the served network sees them."""
        healthy = anomaly.versions(anomaly.healthy_images(self.val), anomaly.JUDGE_SEED)
        images = np.concatenate([self.val.images, *healthy])
        # Without rounding to grey levels.
        pooled = [tf.nn.avg_pool2d(x.astype(np.float32), 2, 2, "VALID") for x in _batches(images)]
        return np.concatenate(pooled)

    @functools.cached_property
    def context_score(self) -> np.ndarray:
        """Score of the context alone, float32 [N] of the validation images."""
        size = self.val.images.shape[1]
        return self.score(autoencoder.build_network("restoring", size), "context")

    @property
    def sick(self) -> np.ndarray:
        """bool, of the validation images."""
        return self.val.labels == 1

    def score(self, network: keras.Model, name: str) -> np.ndarray:
        """Scores of the validation images, as `train_autoencoder.py` would give them."""
        healthy = anomaly.healthy_images(self.val)
        model = anomaly.scoring_model(network, self.context, healthy, name)
        return anomaly.asked(model, ("score",))(self.val.images)["score"]

    def row(self, network: keras.Model, seconds: float = 0.0) -> Row:
        """What the network removes, and that joined with the context."""
        return Row(self.score(network, "removed"), self.score(network, "combined"), seconds)

    def measured(
        self, amounts: np.ndarray, seconds: float = 0.0, *, least: float = autoencoder.LEAST_REMOVED
    ) -> Row:
        """Another measure of what fails, in the place of what is removed in the joined score.

        amounts: float [M], not negative, of the images `shown`; least: less than this is nothing.
        """
        count = len(self.sick)
        logarithms = np.log(amounts + least)
        healthy = logarithms[count:]
        deviations = (logarithms[:count] - healthy.mean()) / max(float(healthy.std()), 0.05)
        return Row(amounts[:count], (deviations + 3 * self.context_score) / 4, seconds)


def make_material(settings: CompareAutoencoders, healthy: Data, val: Data) -> Material:
    """Everything that the variants share, of images of any size."""
    seen = autoencoder.as_network_sees(healthy.images, "restoring")
    context = anomaly.fit_context(healthy.images)
    return Material(settings, healthy, seen, opacities.lung_fields(seen), val, context)


# ---------------------------------------------------------------------- the variants


def variants(
    material: Material, features: Callable[[np.ndarray, int], np.ndarray] | None
) -> dict[str, Callable[[], Iterator[tuple[str, Row]]]]:
    """By name, what yields the rows of one training, or of features that need none."""
    seen, lungs = material.seen, material.lungs
    next_seed = (material.settings.seed + 1) % (LARGEST_SEED + 1)
    average = np.round(lungs.mean(axis=0, keepdims=True)).astype(np.uint8)

    def retrained(name: str, *args: Any, **changes: Any) -> Callable:
        def rows() -> Iterator[tuple[str, Row]]:
            network, _, seconds = trained(material, *args, **changes)
            yield name, material.row(network, seconds)

        return rows

    def painted(**how: float) -> opacities.Pair:
        return lambda healthy, lungs, seed: opacities.contrast_pair(
            healthy, opacities.paint(healthy, lungs, seed, **how)
        )

    found: dict[str, Callable] = {
        DEFAULT: lambda: of_default(material),
        "seed": retrained(NEXT_SEED, seen, lungs, seed=next_seed),
        "long": retrained("trained four times as long", seen, lungs, epochs=4 * material.epochs),
        "fixed-lungs": retrained(
            "lungs where they are on average", seen, np.repeat(average, len(lungs), axis=0)
        ),
        "phantoms": lambda: of_phantom_lesions(material),
        "hard": retrained(
            "paint with edges a quarter as soft", seen, lungs, pair=painted(softness=0.25)
        ),
        "soft": retrained("paint with edges twice as soft", seen, lungs, pair=painted(softness=2)),
        "small": retrained("painted regions half as wide", seen, lungs, pair=painted(extent=0.5)),
        "large": retrained("painted regions twice as wide", seen, lungs, pair=painted(extent=2)),
        "scanners": retrained(
            "trained on images of other scanners", seen, lungs, pair=rescanned_pair
        ),
        "covered": lambda: of_covered(material),
        "grey-levels": lambda: of_grey_levels(material),
        "narrow": lambda: of_surroundings(0.5, material),
        "wide": lambda: of_surroundings(2.0, material),
        "larger": lambda: of_larger_images(material),
    }
    if features is not None:
        found["features"] = lambda: of_features(material, features)
    return found


def trained(
    material: Material,
    images: np.ndarray,
    lungs: np.ndarray,
    *,
    seed: int | None = None,
    epochs: int | None = None,
    pair: opacities.Pair | None = None,
) -> tuple[keras.Model, list[np.ndarray], float]:
    """A restoring network; the weights of its last step, before averaging; the seconds it took.

    images, lungs: uint8 [N, T, T, 1]. As `anomaly.fit` does, without the choice of an epoch.
    """
    settings, started = material.settings, time.perf_counter()
    seed = settings.seed if seed is None else seed
    epochs = material.epochs if epochs is None else epochs
    keras.utils.set_random_seed(seed)
    network = autoencoder.build_network("restoring", 2 * images.shape[1])
    batch_size = min(settings.batch_size, len(images))
    steps = pipeline.steps_per_epoch(len(images), batch_size)
    network.compile(
        training.averaged_adamw(
            TrainAutoencoder.learning_rate, steps=steps * epochs, weight_decay=1e-4
        ),
        loss=anomaly.losses("restoring"),
        loss_weights=anomaly.LOSS_WEIGHTS["restoring"],
    )
    weights: list[list[np.ndarray]] = []
    network.fit(
        opacities.restoration_batches(
            images, lungs, batch_size=batch_size, seed=seed, epochs=range(epochs), pair=pair
        ),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            # `fit` puts the averages in their place when it ends.
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: weights.append(network.get_weights())
            )
        ],
        shuffle=False,
        verbose=0,
    )
    if not all(np.isfinite(w).all() for w in network.get_weights()):
        raise UserError("a weight of a network became no finite number; try another --seed")
    return network, weights[-1], time.perf_counter() - started


def of_default(material: Material) -> Iterator[tuple[str, Row]]:
    """The default network by its own scores and by others."""
    network, last, seconds = trained(material, material.seen, material.lungs)
    default = material.row(network, seconds)
    yield DEFAULT, default

    averaged = network.get_weights()
    network.set_weights(last)
    yield "weights of the last step, not averaged", material.row(network)
    network.set_weights(averaged)

    yield "the context, no network", Row(material.context_score, None)
    grey = dataclasses.replace(
        material, context=anomaly.fit_context(material.healthy.images, GreyContext)
    )
    joined = grey.score(network, "combined")
    yield "the context, detail in grey levels", Row(grey.context_score, joined)
    yield from other_residuals(network, material)

    healthy = anomaly.healthy_images(material.val)
    model = anomaly.scoring_model(network, material.context, healthy, "combined")
    images = material.val.images
    ask = anomaly.asked(model, ("score",))
    assert default.joined is not None
    mirrored = ask(images[:, :, ::-1])["score"]
    yield "averaged with the mirrored image", Row(None, (default.joined + mirrored) / 2)
    views = [default.joined, *(ask(moved)["score"] for moved in shifts(images))]
    yield "averaged with four shifted images", Row(None, np.mean(views, axis=0))
    yield "joined by logistic regression", Row(None, fitted_together(model, material))


class GreyContext(HealthyContext):
    """A context whose detail is that of grey levels."""

    def detailed(
        self, images: keras.KerasTensor, standardised: keras.KerasTensor
    ) -> keras.KerasTensor:
        """See the class."""
        return standardised


def other_residuals(network: keras.Model, material: Material) -> Iterator[tuple[str, Row]]:
    """Other measures of what the default network changes."""
    maps, marks, similar = [], [], []
    for part in _batches(material.shown):
        x = local_contrast(tf.constant(part))
        outputs = network(x, training=False)
        maps.append(tf.nn.relu(outputs["removed"]).numpy())
        marks.append(tf.sigmoid(outputs["mark"]).numpy())
        restored = x - outputs["removed"]
        similar.append((1 - autoencoder.structural_similarity(x, restored)).numpy() / 2)
    removed = np.concatenate(maps)
    coarser = [removed] + [
        tf.nn.avg_pool2d(removed, times, times, "VALID").numpy() for times in (2, 4, 8)
    ]
    yield "the mark of the network", material.measured(highest_tenth(np.concatenate(marks)))
    dissimilar = np.concatenate(similar).mean(axis=(1, 2, 3))
    yield "SSIM of what it gives back", material.measured(np.maximum(dissimilar, 0))
    squared = material.measured(highest_tenth(removed**2), least=autoencoder.LEAST_REMOVED**2)
    yield "removed, squared", squared
    yield (
        "removed, at four scales",
        material.measured(np.mean([highest_tenth(x) for x in coarser], axis=0)),
    )
    yield (
        "removed, in deviations of each pixel",
        material.measured(highest_tenth(by_pixel(removed, material))),
    )


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return np.split(images, range(anomaly.BATCH, len(images), anomaly.BATCH))


def highest_tenth(maps: np.ndarray) -> np.ndarray:
    """Mean of the highest tenth of each map, float32 [N]; maps: float32 [N, T, T, 1]."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    return flat[:, -int(autoencoder.SCORED_SHARE * flat.shape[1]) :].mean(axis=1)


def by_pixel(maps: np.ndarray, material: Material) -> np.ndarray:
    """Maps of the images `shown` in deviations of healthy validation images, clipped at 0.

    Pixel by pixel. Healthy patients are measured by the half of them that they are not in, the sick
    by one half.
    """
    patients, sick = np.array(material.val.catalog.patients), material.sick
    known = np.unique(patients[~sick])
    first = np.isin(patients, known[::2]) | (sick & ~np.isin(patients, known))
    copies = (len(maps) - len(sick)) // int((~sick).sum())
    in_first = np.concatenate([first, *[first[~sick]] * copies])
    out = np.empty_like(maps)
    for own, other in ((in_first, ~first & ~sick), (~in_first, first & ~sick)):
        healthy = maps[: len(sick)][other]
        spread = healthy.std(axis=0) + 0.1 * healthy.std()
        out[own] = np.maximum((maps[own] - healthy.mean(axis=0)) / spread, 0)
    return out


def shifts(images: np.ndarray, share: float = 0.03) -> Iterator[np.ndarray]:
    """The images shifted towards each corner, float32; what comes from outside is black."""
    count, size = images.shape[:2]
    zeros, ones = tf.zeros(count), tf.ones(count)
    for down in (-share, share):
        for across in (-share, share):
            yield pipeline.affine(
                tf.constant(images, tf.float32),
                angle=zeros,
                scale_x=ones,
                scale_y=ones,
                shift_x=across * size * ones,
                shift_y=down * size * ones,
            ).numpy()


def fitted_together(model: keras.Model, material: Material) -> np.ndarray:
    """The four errors weighed by a logistic regression, fitted to the other patients' images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    errors = {"score": model.get_layer("healthy_scale").output}
    deviations = anomaly.asked(keras.Model(model.input, errors), ("score",))(material.val.images)
    return cross_val_predict(
        LogisticRegression(),
        deviations["score"],
        material.sick,
        groups=material.val.catalog.patients,
        cv=StratifiedGroupKFold(5),
        method="decision_function",
    )


# ---------------------------------------------------------------------- other trainings


def rescanned_pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
    """Another tone and light, blur or noise, then the default's paint."""
    return opacities.restoration_pair(exposures.rescanned(healthy, seed), lungs, seed)


def of_phantom_lesions(material: Material) -> Iterator[tuple[str, Row]]:
    """The opacities that phantoms are painted with, on real lungs; two for each image, where that
    many epochs of twice the images are as many steps."""
    epochs = material.epochs
    copies = 2 - epochs % 2
    painted = [phantom_lesions(material, copy) for copy in range(copies)]

    def pair(healthy: tf.Tensor, raised: tf.Tensor, seed: tf.Tensor) -> tuple:
        return opacities.contrast_pair(healthy, tf.minimum(healthy + 255 * raised, 255.0))

    images = np.concatenate([material.seen] * copies)
    network, _, seconds = trained(
        material, images, np.concatenate(painted), epochs=epochs // copies, pair=pair
    )
    yield "the phantoms' lobar and interstitial opacities", material.row(network, seconds)


def phantom_lesions(material: Material, copy: int) -> np.ndarray:
    """By how many grey levels each image is raised, uint8 [N, T, T, 1]; every fifth is not."""
    raised = np.zeros_like(material.seen)
    for i, (image, lungs) in enumerate(zip(material.seen, material.lungs, strict=True)):
        rng = np.random.default_rng((material.settings.seed, copy, i))
        paint = phantom.paint_lobar if rng.random() < 0.55 else phantom.paint_interstitial
        if rng.random() < opacities.PAINTED_SHARE:
            gray = image[..., 0].astype(np.float32) / 255
            painted, _ = paint(gray, lungs[..., 0] / 255, rng, rng.uniform(0.25, 1.0))
            raised[i, ..., 0] = np.round(255 * np.maximum(painted - gray, 0))
    return raised


def of_covered(material: Material) -> Iterator[tuple[str, Row]]:
    """Masked inpainting: a quarter of the cells is covered, and told from the others."""

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        batch, size = tf.shape(healthy)[0], healthy.shape[1]
        streams = tf.random.experimental.stateless_split(seed, 2)
        drawn = tf.random.stateless_uniform([batch, CELLS, CELLS, 1], streams[0]) < 0.25
        cover = tf.image.resize(tf.cast(drawn, tf.float32), [size, size], method="nearest")
        offset = tf.random.stateless_uniform([2], streams[1], 0, size, tf.int32)
        cover = tf.roll(cover, offset, axis=[1, 2])
        seen = local_contrast(healthy)
        inputs, targets = opacities.as_pair(seen, seen * (1 - cover))
        return inputs, {**targets, "mark": cover}

    network, _, seconds = trained(material, material.seen, material.lungs, pair=pair)
    size = material.shown.shape[1]
    rows, columns = np.mgrid[:size, :size] * CELLS // size
    amounts = []
    for part in _batches(material.shown):
        x = local_contrast(tf.constant(part))
        error = np.zeros_like(part)
        for turn in range(4):
            cover = ((rows % 2) * 2 + columns % 2 == turn).astype(np.float32)[None, ..., None]
            removed = network(x * (1 - cover), training=False)["removed"]
            error += (tf.nn.relu(x + removed) * cover).numpy()
        amounts.append(highest_tenth(error))
    yield "cells covered and told (inpainting)", material.measured(np.concatenate(amounts), seconds)


def of_grey_levels(material: Material) -> Iterator[tuple[str, Row]]:
    """Each image in deviations of the whole of it, in the place of its local contrast."""

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        painted = opacities.paint(healthy, lungs, seed)
        spread = tf.math.reduce_std(painted, axis=[1, 2, 3], keepdims=True) + 1.0
        _, targets = opacities.as_pair(healthy / spread, painted / spread)
        return opacities.standardised(painted), targets

    yield "grey levels, not local contrast", seen_as(opacities.standardised, pair, material)


def of_surroundings(times: float, material: Material) -> Iterator[tuple[str, Row]]:
    """Local contrast in surroundings of another width."""
    see = functools.partial(local_contrast, share=times * WINDOW)

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        return opacities.as_pair(see(healthy), see(opacities.paint(healthy, lungs, seed)))

    yield f"local contrast, surroundings {times:g} times as wide", seen_as(see, pair, material)


def seen_as(see: Callable[[tf.Tensor], tf.Tensor], pair: opacities.Pair, material: Material) -> Row:
    """What a network removes that sees images otherwise, as it has learnt from the pairs."""
    network, _, seconds = trained(material, material.seen, material.lungs, pair=pair)
    amounts = []
    for part in _batches(material.shown):
        removed = network(see(tf.constant(part)), training=False)["removed"]
        amounts.append(highest_tenth(tf.nn.relu(removed).numpy()))
    return material.measured(np.concatenate(amounts), seconds)


def of_larger_images(material: Material) -> Iterator[tuple[str, Row]]:
    """Network and context on images of 10/7 of the side: 320 pixels for 224."""
    size = round(material.settings.image_size * 10 / 7 / 32) * 32
    parts = []
    for part in (material.healthy, material.val):
        images, unreadable = pipeline.load_images(part.catalog.paths, size)
        for row, reason in unreadable.items():  # it was read when this began
            raise UserError(f"{part.catalog.paths[row]}: {reason}")
        parts.append(dataclasses.replace(part, images=images))
    larger = make_material(material.settings, *parts)
    network, _, seconds = trained(larger, larger.seen, larger.lungs)
    name = f"images of {size} pixels, of which the network sees {size // 2}"
    yield name, larger.row(network, seconds)


# ---------------------------------------------------------------------- features of a classifier


def feature_maps(
    settings: CompareAutoencoders,
) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Images uint8 [N, S, S, 1] and a block's number -> the block's features float32 [N, D].

    Of VGG16; None where no weights are given, or these rows are not asked for. Raises UserError
    for weights that cannot be had.
    """
    asked = not settings.variants or "features" in settings.variants
    if settings.vgg16_weights == "none" or not asked:
        return None
    model = build_classifier("vgg16", classes=2, image_size=settings.image_size // 2)
    backbones.load_weights(model, "vgg16", settings.vgg16_weights)

    def features(images: np.ndarray, block: int) -> np.ndarray:
        end = model.get_layer(f"block{block}_pool").output
        ask = training.compiled(keras.Model(model.input, end))
        seen = autoencoder.as_network_sees(images, "restoring")
        found = [ask(tf.constant(part, tf.float32)).numpy() for part in _batches(seen)]
        return np.concatenate([x.reshape(len(x), -1) for x in found])

    return features


def of_features(
    material: Material, features: Callable[[np.ndarray, int], np.ndarray]
) -> Iterator[tuple[str, Row]]:
    """What a linear autoencoder cannot rebuild of the features, and how far the nearest are."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    healthy = material.healthy.images
    healthy = healthy[:: -(-len(healthy) // MOST_FEATURED)]
    for block in (3, 4, 5):
        started = time.perf_counter()
        known = features(healthy, block)
        mean, spread = known.mean(axis=0), known.std(axis=0) + 1e-3
        known = (known - mean) / spread
        pca = PCA(min(FEATURE_CODE, len(known) // 2), svd_solver="randomized", random_state=0)
        pca.fit(known)
        seconds = time.perf_counter() - started
        own = (features(material.val.images, block) - mean) / spread
        rest = ((own - pca.inverse_transform(pca.transform(own))) ** 2).mean(axis=1)
        yield f"VGG16's block {block}, linear autoencoder", Row(rest, None, seconds)
    near = NearestNeighbors(n_neighbors=5).fit(known)
    distances = near.kneighbors(own)[0].mean(axis=1)
    yield "VGG16's block 5, distance to five healthy images", Row(distances, None)
