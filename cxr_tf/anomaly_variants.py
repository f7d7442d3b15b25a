"""Variants of the autoencoder on the same data: what the default is made of, and what was left out.

    python scripts/compare_autoencoders.py --data chest_xray
    python scripts/compare_autoencoders.py --data chest_xray --vgg16-weights imagenet

Every row is an anomaly score: `alone`, and `joined` with the context of healthy lungs as the
default joins the two. Networks are trained on healthy images of the train split, with the same
number of steps; rows are ranked on validation, where they were also thought up. So the best of many
is a little too good here, and test is not looked at: `train_autoencoder.py` does that, once.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import anomaly, figures, metrics, training
from cxr_tf.data import exposures, opacities, phantom, pipeline
from cxr_tf.errors import UserError
from cxr_tf.evaluation import Data
from cxr_tf.models import autoencoder, backbones
from cxr_tf.models.classifier import build_classifier
from cxr_tf.models.context import HealthyContext
from cxr_tf.runs import Run, open_run, refuse_existing, write_csv, write_json
from cxr_tf.settings import CompareAutoencoders, TrainAutoencoder, check_numbers

log = logging.getLogger(__name__)

DEFAULT, NEXT_SEED = "default", "the next seed"

# Of validation, healthy and sick each: they are divided into five parts.
FEWEST_PATIENTS = 5

# A side of the image is this many cells when they are covered in turn.
CELLS = 8

# Numbers that a linear autoencoder of features squeezes an image into.
FEATURE_CODE = 400


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

    def joined(self, network: keras.Model, amounts: np.ndarray) -> np.ndarray:
        """Another measure of what fails, in the place of what is removed in the joined score."""
        amounts = np.log(amounts + autoencoder.LEAST_REMOVED)
        healthy = amounts[~self.sick]
        deviations = (amounts - healthy.mean()) / max(float(healthy.std()), 0.05)
        return (deviations + 3 * self.score(network, "context")) / 4


def compare(settings: CompareAutoencoders) -> Run:
    """Trains and scores all variants, writes the comparison, returns its run.

    Raises UserError on a user's mistake, before anything is written.
    """
    refuse_existing(settings.logs, "compare", settings.name, settings)
    check_numbers(settings, epochs=1)
    autoencoder.check_size("restoring", settings.image_size)
    # Many functions are traced; TensorFlow takes that for one traced in a loop.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    features = feature_maps(settings)  # weights that cannot be had are known before the hours
    data = load_data(settings)
    run = open_run(settings.logs, "compare", settings.name, settings, data.catalog)
    if run.finished:
        log.info("%s is finished already; nothing to do", run.directory)
        return run

    healthy, val = data.split("train"), data.split("val")
    material = make_material(settings, healthy.take(np.flatnonzero(healthy.labels == 0)), val)
    rows = Rows(run.directory, material.sick)
    for name, make in variants(material, features).items():
        rows.add(name, make)
    tables = judge(rows.all(), val, resamples=settings.resamples)
    _write(run, tables, val)
    rows.remove()
    log.info("\n%s\ncomparison: %s", table(tables, val), run.directory)
    return run


def load_data(settings: CompareAutoencoders) -> Data:
    """The checked data; UserError for what an autoencoder cannot learn from, or be compared on."""
    names = {f.name for f in dataclasses.fields(TrainAutoencoder)} - {"name"}
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k in names}
    data = anomaly.load_data(TrainAutoencoder(**shared))
    val = data.split("val")
    patients = np.array(val.catalog.patients)
    healthy, sick = (len(set(patients[val.labels == k])) for k in (0, 1))
    if min(healthy, sick) < FEWEST_PATIENTS:
        raise UserError(
            f"{data.catalog.source}: {healthy} healthy and {sick} sick patients in validation; to "
            f"compare by them takes at least {FEWEST_PATIENTS} of each"
        )
    return data


def make_material(settings: CompareAutoencoders, healthy: Data, val: Data) -> Material:
    """Everything that the variants share, of images of any size."""
    seen = autoencoder.as_network_sees(healthy.images, "restoring")
    context = anomaly.fit_context(healthy.images)
    return Material(settings, healthy, seen, opacities.lung_fields(seen), val, context)


# ---------------------------------------------------------------------- the variants


def variants(
    material: Material, features: Callable[[np.ndarray], list[np.ndarray]] | None
) -> dict[str, Callable[[], Iterator[tuple[str, Row]]]]:
    """By name, what yields the rows of one training, or of features that need none."""
    seen, lungs = material.seen, material.lungs
    epochs = material.settings.epochs
    average = np.round(lungs.mean(axis=0, keepdims=True)).astype(np.uint8)

    def retrained(name: str, *args: Any, **changes: Any) -> Callable:
        def rows() -> Iterator[tuple[str, Row]]:
            network, _, seconds = trained(material, *args, **changes)
            yield name, material.row(network, seconds)

        return rows

    def softened(softness: float) -> opacities.Pair:
        return lambda healthy, lungs, seed: opacities.as_pair(
            healthy, opacities.paint(healthy, lungs, seed, softness=softness)
        )

    found: dict[str, Callable] = {
        DEFAULT: lambda: of_default(material),
        "seed": retrained(NEXT_SEED, seen, lungs, seed=material.settings.seed + 1),
        "fixed lungs": retrained(
            "lungs where they are on average", seen, np.repeat(average, len(lungs), axis=0)
        ),
        "phantoms": lambda: of_phantom_lesions(material, max(1, epochs // 2)),
        "hard": retrained("paint with edges a quarter as soft", seen, lungs, pair=softened(0.25)),
        "soft": retrained("paint with edges twice as soft", seen, lungs, pair=softened(2.0)),
        "scanners": retrained("trained on other scanners too", seen, lungs, pair=rescanned_pair),
        "covered": lambda: of_covered(material),
        "contrast": lambda: of_local_contrast(material),
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
    epochs = settings.epochs if epochs is None else epochs
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

    yield "the context, no network", Row(material.score(network, "context"), None)
    for name, amounts in other_residuals(network, material).items():
        yield name, Row(amounts, material.joined(network, amounts))

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


def other_residuals(network: keras.Model, material: Material) -> dict[str, np.ndarray]:
    """Other measures of what the default network changes: float32 [N], not negative."""
    shown = autoencoder.as_network_sees(material.val.images, "restoring")
    maps, marks, similar = [], [], []
    for start in range(0, len(shown), anomaly.BATCH):
        x = opacities.standardised(tf.constant(shown[start : start + anomaly.BATCH]))
        outputs = network(x, training=False)
        maps.append(tf.nn.relu(outputs["removed"]).numpy())
        marks.append(tf.sigmoid(outputs["mark"]).numpy())
        restored = x - outputs["removed"]
        similar.append((1 - autoencoder.structural_similarity(x, restored)).numpy() / 2)
    removed = np.concatenate(maps)
    coarser = [removed] + [
        tf.nn.avg_pool2d(removed, times, times, "VALID").numpy() for times in (2, 4, 8)
    ]
    return {
        "the mark of the network": highest_tenth(np.concatenate(marks)),
        "SSIM of what it gives back": np.concatenate(similar).mean(axis=(1, 2, 3)),
        "removed, squared": highest_tenth(removed**2),
        "removed, at four scales": np.mean([highest_tenth(x) for x in coarser], axis=0),
        "removed, in deviations of each pixel": highest_tenth(by_pixel(removed, material)),
    }


def highest_tenth(maps: np.ndarray) -> np.ndarray:
    """Mean of the highest tenth of each map, float32 [N]; maps: float32 [N, T, T, 1]."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    return flat[:, -int(autoencoder.SCORED_SHARE * flat.shape[1]) :].mean(axis=1)


def by_pixel(maps: np.ndarray, material: Material) -> np.ndarray:
    """Maps in standard deviations of healthy validation images, pixel by pixel, clipped at 0.

    Healthy patients are measured by one half of them that they are not in, the sick by one half.
    """
    patients = np.array(material.val.catalog.patients)
    known = np.unique(patients[~material.sick])
    first = np.isin(patients, known[::2]) | (material.sick & ~np.isin(patients, known))
    out = np.empty_like(maps)
    for own in (first, ~first):
        other = ~own & ~material.sick
        spread = maps[other].std(axis=0) + 0.1 * maps[other].std()
        out[own] = np.maximum((maps[own] - maps[other].mean(axis=0)) / spread, 0)
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


def of_phantom_lesions(material: Material, epochs: int) -> Iterator[tuple[str, Row]]:
    """The opacities that phantoms are painted with, on real lungs; two of them for each image."""
    painted = [phantom_lesions(material, copy) for copy in range(2)]
    twice = np.concatenate([material.seen] * 2)

    def pair(healthy: tf.Tensor, raised: tf.Tensor, seed: tf.Tensor) -> tuple:
        return opacities.as_pair(healthy, tf.minimum(healthy + 255 * raised, 255.0))

    network, _, seconds = trained(
        material, twice, np.concatenate(painted), epochs=epochs, pair=pair
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
        inputs, targets = opacities.as_pair(healthy, covered(healthy, cover))
        return inputs, {**targets, "mark": cover}

    network, _, seconds = trained(material, material.seen, material.lungs, pair=pair)
    shown = autoencoder.as_network_sees(material.val.images, "restoring").astype(np.float32)
    size = shown.shape[1]
    rows, columns = np.mgrid[:size, :size] * CELLS // size
    maps = np.zeros_like(shown)
    for start in range(0, len(shown), anomaly.BATCH):
        x = shown[start : start + anomaly.BATCH]
        for turn in range(4):
            cover = ((rows % 2) * 2 + columns % 2 == turn).astype(np.float32)[None, ..., None]
            with_cover = covered(tf.constant(x), tf.constant(cover))
            removed = network(opacities.standardised(with_cover), training=False)["removed"]
            spread = tf.math.reduce_std(with_cover, axis=[1, 2, 3], keepdims=True) + 1.0
            error = (x - with_cover) / spread + removed
            maps[start : start + len(x)] += (tf.nn.relu(error) * cover).numpy()
    amounts = highest_tenth(maps)
    yield (
        "cells covered and told (inpainting)",
        Row(amounts, material.joined(network, amounts), seconds),
    )


def covered(images: tf.Tensor, cover: tf.Tensor) -> tf.Tensor:
    """Images [B, T, T, 1] with their mean where `cover` is 1."""
    return images + cover * (tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True) - images)


def of_local_contrast(material: Material) -> Iterator[tuple[str, Row]]:
    """Each image in deviations of its surroundings, before the network sees it."""
    seen = local_contrast(material.seen)
    network, _, seconds = trained(material, seen, material.lungs)
    shown = local_contrast(autoencoder.as_network_sees(material.val.images, "restoring"))
    maps = [
        network(opacities.standardised(tf.constant(part)), training=False)["removed"].numpy()
        for part in np.split(shown, range(anomaly.BATCH, len(shown), anomaly.BATCH))
    ]
    amounts = highest_tenth(np.maximum(np.concatenate(maps), 0))
    yield "local contrast normalised", Row(amounts, material.joined(network, amounts), seconds)


def local_contrast(images: np.ndarray) -> np.ndarray:
    """uint8 [N, T, T, 1] -> the same, in deviations of a Gaussian window of an eighth of a side."""
    from scipy import ndimage

    out = np.empty_like(images)
    for k, image in enumerate(images[..., 0].astype(np.float32)):
        mean, square = (
            ndimage.gaussian_filter(x, images.shape[1] / 8) for x in (image, image * image)
        )
        deviations = (image - mean) / np.sqrt(np.maximum(square - mean * mean, 0) + 25)
        out[k, ..., 0] = np.clip(np.round(128 + 45 * deviations), 0, 255)
    return out


def of_larger_images(material: Material) -> Iterator[tuple[str, Row]]:
    """Network and context on images of 10/7 of the side: 320 pixels for 224."""
    size = round(material.settings.image_size * 10 / 7 / 32) * 32
    parts = []
    for part in (material.healthy, material.val):
        images, unreadable = pipeline.load_images(part.catalog.paths, size)
        assert not unreadable  # they were read before
        parts.append(dataclasses.replace(part, images=images))
    larger = make_material(material.settings, *parts)
    network, _, seconds = trained(larger, larger.seen, larger.lungs)
    name = f"images of {size} pixels, of which the network sees {size // 2}"
    yield name, larger.row(network, seconds)


# ---------------------------------------------------------------------- features of a classifier


def feature_maps(
    settings: CompareAutoencoders,
) -> Callable[[np.ndarray], list[np.ndarray]] | None:
    """Images uint8 [N, S, S, 1] -> features float32 [N, D] of blocks 3, 4 and 5 of VGG16.

    None where no weights are given. Raises UserError for weights that cannot be had.
    """
    if settings.vgg16_weights == "none":
        return None
    size = settings.image_size // 2
    model = build_classifier("vgg16", classes=2, image_size=size)
    backbones.load_weights(model, "vgg16", settings.vgg16_weights)
    ends = [model.get_layer(f"block{k}_pool").output for k in (3, 4, 5)]
    ask = training.compiled(keras.Model(model.input, ends))

    def features(images: np.ndarray) -> list[np.ndarray]:
        seen = autoencoder.as_network_sees(images, "restoring")
        parts = np.split(seen, range(anomaly.BATCH, len(seen), anomaly.BATCH))
        found = [ask(tf.constant(part, tf.float32)) for part in parts]
        return [
            np.concatenate([np.reshape(x, (len(x), -1)) for x in block])
            for block in zip(*found, strict=True)
        ]

    return features


def of_features(
    material: Material, features: Callable[[np.ndarray], list[np.ndarray]]
) -> Iterator[tuple[str, Row]]:
    """What a linear autoencoder cannot rebuild of the features, and how far the nearest are."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    started = time.perf_counter()
    healthy, shown = features(material.healthy.images), features(material.val.images)
    for block, known, own in zip((3, 4, 5), healthy, shown, strict=True):
        mean, spread = known.mean(axis=0), known.std(axis=0) + 1e-3
        known, own = (known - mean) / spread, (own - mean) / spread
        pca = PCA(min(FEATURE_CODE, len(known) // 2), svd_solver="randomized", random_state=0)
        pca.fit(known)
        rest = ((own - pca.inverse_transform(pca.transform(own))) ** 2).mean(axis=1)
        seconds = time.perf_counter() - started
        yield f"VGG16's block {block}, linear autoencoder", Row(rest, None, seconds)
    near = NearestNeighbors(n_neighbors=5).fit(known)
    distances = near.kneighbors(own)[0].mean(axis=1)
    yield "VGG16's block 5, distance to five healthy images", Row(distances, None)


# ---------------------------------------------------------------------- what is written down


class Rows:
    """The rows that are done, in `rows.json` of the run directory until all are.

    {name of a training: {row: {"alone", "joined", "seconds"}}}.
    """

    def __init__(self, directory: Path, sick: np.ndarray) -> None:
        self._sick = sick
        self._file = directory / "rows.json"
        self._done: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            self._done = json.loads(self._file.read_text())

    def add(self, name: str, make: Callable[[], Iterator[tuple[str, Row]]]) -> None:
        """Makes the rows of a training, unless they were made before."""
        if name in self._done:
            return
        self._done[name] = {}
        for row, scores in make():
            log.info("  %s: AUROC on validation %s", row, self._areas(scores))
            self._done[name][row] = {
                "alone": None if scores.alone is None else scores.alone.tolist(),
                "joined": None if scores.joined is None else scores.joined.tolist(),
                "seconds": scores.seconds,
            }
        write_json(self._file, self._done)
        keras.backend.clear_session()

    def _areas(self, scores: Row) -> str:
        found = (("alone", scores.alone), ("joined", scores.joined))
        return ", ".join(
            f"{name} {metrics.roc_area(self._sick, own):.3f}"
            for name, own in found
            if own is not None
        )

    def all(self) -> dict[str, Row]:
        """Every row, in order; with the mean of the two seeds."""
        rows = {name: _row(own) for group in self._done.values() for name, own in group.items()}
        first, second = rows[DEFAULT].joined, rows[NEXT_SEED].joined
        assert first is not None and second is not None
        return {**rows, "both seeds averaged": Row(None, (first + second) / 2)}

    def remove(self) -> None:
        """Deletes the file; the run is done."""
        self._file.unlink()


def _row(written: dict[str, Any]) -> Row:
    alone, joined = (
        None if written[k] is None else np.array(written[k]) for k in ("alone", "joined")
    )
    return Row(alone, joined, written["seconds"])


def judge(rows: dict[str, Row], val: Data, *, resamples: int) -> dict[str, dict[str, Any]]:
    """AUROC on validation of every row, with intervals, for `metrics.json`.

    `alone`, `joined`: AUROC, with `ci95`. `difference`: of the joined one, or where there is none
    of the row alone, to the default's joined one on the same images.
    """
    sick, patients = val.labels == 1, val.catalog.patients
    default = rows[DEFAULT].joined
    assert default is not None
    tables = {}
    for name, row in rows.items():
        scores = {k: v for k in ("alone", "joined") if (v := getattr(row, k)) is not None}
        areas = functools.partial(_areas, sick, scores, default)
        tables[name] = {
            **areas(None),
            "ci95": metrics.intervals(areas, patients, resamples=resamples),
            "seconds": row.seconds,
        }
    return tables


def _areas(
    sick: np.ndarray, scores: dict[str, np.ndarray], default: np.ndarray, weights: np.ndarray | None
) -> dict[str, float]:
    areas = {name: metrics.roc_area(sick, own, weights) for name, own in scores.items()}
    best = areas.get("joined", areas.get("alone", float("nan")))
    return {**areas, "difference": best - metrics.roc_area(sick, default, weights)}


def table(tables: dict[str, dict[str, Any]], val: Data) -> str:
    """The comparison for the screen."""
    sick = int((val.labels == 1).sum())
    heading = f"AUROC on {len(val.labels) - sick} healthy and {sick} sick validation images"
    width = max(len(heading), *map(len, tables)) + 2
    lines = [
        f"{heading:<{width}}{'alone':>24}{'joined with the context':>26}"
        f"{'difference':>28}{'seconds':>9}"
    ]
    for name, scores in tables.items():
        alone, joined = (
            metrics.with_interval(scores, k) if k in scores else "" for k in ("alone", "joined")
        )
        low, high = scores["ci95"].get("difference", (float("nan"),) * 2)
        difference = f"{scores['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        seconds = f"{scores['seconds']:.0f}" if scores["seconds"] else ""
        lines.append(
            f"{name:<{width}}{alone:>24}{joined:>26}"
            f"{'' if name == DEFAULT else difference:>28}{seconds:>9}"
        )
    return "\n".join(lines)


def _write(run: Run, tables: dict[str, dict[str, Any]], val: Data) -> None:
    writer = run.writer()
    run.write_figure("variants", figures.variants(tables, DEFAULT), writer)
    with writer.as_default(step=0):
        tf.summary.text("variants", "```\n" + table(tables, val) + "\n```")
    ranged = ("alone", "joined", "difference")
    write_csv(
        run.directory / "variants.csv",
        ["variant", *(f"{m}{end}" for m in ranged for end in ("", "_low", "_high")), "seconds"],
        [
            [
                name,
                *(v for m in ranged for v in (t.get(m, ""), *t["ci95"].get(m, ("", "")))),
                f"{t['seconds']:.0f}",
            ]
            for name, t in tables.items()
        ],
    )
    run.write_metrics({"val": tables[DEFAULT], "variants": tables})
