"""Anomaly detection: an autoencoder that has seen healthy radiographs only.

    python scripts/train_autoencoder.py --data chest_xray
    python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim   # to compare

How it trains. The network sees healthy images of the train split and nothing else, with opacities
painted into their lungs, and learns to give back the healthy image. The epoch is chosen by its loss
on healthy validation images, painted the same way each time.

How it decides. The score joins what the network takes away with what healthy surroundings of the
lungs let expect in them, or is one of the two alone where that parts the validation split better.
The threshold is read off the ROC curve of the validation split, taken otherwise as well. These two
choices are the only use of a sick image before the test.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import evaluation, figures, metrics, serving, store, training
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import exposures, opacities, pipeline
from cxr_tf.errors import UserError
from cxr_tf.evaluation import Data
from cxr_tf.models import autoencoder
from cxr_tf.models.context import HealthyContext
from cxr_tf.runs import Run, atomically, open_run, refuse_existing, write_csv
from cxr_tf.settings import CompareAutoencoders, Evaluate, TrainAutoencoder, check_numbers

log = logging.getLogger(__name__)

# Images uint8 [N, S, S, 1] -> some outputs of an autoencoder, by name.
Ask = Callable[[np.ndarray], dict[str, np.ndarray]]

# Images that an autoencoder looks at together.
BATCH = 32

FEWEST_HEALTHY = 20

# Seed of the paint on validation images: fixed, so that every epoch and every run is judged alike.
JUDGE_SEED = 20_002

# Seed of the versions of validation images that the threshold is read off; others than those that
# set the scale of the score.
THRESHOLD_SEED = JUDGE_SEED + 2

# Images uint8 [N, S, S, 1] and a seed -> the same as they are, under another exposure, and from
# another scanner.
VERSIONS: tuple[Callable[[np.ndarray, int], np.ndarray], ...] = (
    lambda images, seed: images,
    exposures.another_exposure,
    exposures.another_scanner,
)

# Without a sick image in validation nothing but the healthy ones can say where to stop.
FALLBACK_FALSE_ALARM = 0.05

# Longer training makes the restoring network's loss smaller and its score no better; with fewer
# steps in all it has learnt little.
EPOCHS, FEWEST_STEPS, MOST_EPOCHS, PLAIN_EPOCHS = 8, 500, 60, 30

# The mark's cross-entropy counts half of the mean absolute error of what is removed.
LOSS_WEIGHTS = {
    "restoring": {"removed": 1.0, "mark": 0.5},
    "plain": {"reconstruction": 1.0},
}


def load_data(settings: TrainAutoencoder) -> Data:
    """Reads, reports and checks the catalogue, then decodes it; label 1 is sick.

    Raises UserError on anything that must not be trained on, such as fewer than 20 healthy images
    in train.
    """
    catalog = catalogs.open_catalog(settings.data, seed=settings.seed)
    log.info(catalogs.describe(catalog))
    _check(catalog, settings)
    catalog, images = evaluation.decode(catalog, settings.image_size, skip=settings.skip_unreadable)
    _check(catalog, settings)
    classes = catalogs.task_classes("binary")
    return Data(catalog, images, catalog.labels("binary", classes), classes)


def _check(catalog: catalogs.Catalog, settings: TrainAutoencoder) -> None:
    sick = catalog.labels("binary", catalogs.task_classes("binary")) == 1
    healthy = {s: int(np.sum(~sick[catalog.rows(s)])) for s in catalogs.SPLITS}
    if healthy["train"] < FEWEST_HEALTHY:
        raise UserError(
            f"{catalog.source}: {healthy['train']} healthy images in the train split; an "
            f"autoencoder learns from them alone and needs at least {FEWEST_HEALTHY}"
        )
    for split in ("val", "test"):
        if not healthy[split]:
            raise UserError(f"{catalog.source}: no healthy image in the {split} split")
    if settings.min_sensitivity is not None and not sick[catalog.rows("val")].any():
        raise UserError("--min-sensitivity needs sick images in the validation split")
    catalogs.check_leakage(catalog, allow_leakage=settings.allow_leakage)


def train_and_evaluate(settings: TrainAutoencoder) -> Run:
    """The whole job; returns the finished run.

    Raises UserError on a user's mistake, before anything is written wherever it can be known
    before.
    """
    name = settings.name or f"autoencoder-{settings.model}"
    known = known_scores(settings)
    refuse_existing(settings.logs, "autoencoder", name, settings)
    store.check_saved_models(settings.saved_models, name)
    _check_numbers(settings)

    # ------------------------------------------------------------------ machine
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    data = load_data(settings)
    train = healthy_images(data.split("train"))
    begun = Run(Path(settings.logs) / "autoencoder" / name)
    settings = settled(settings, len(train), begun)
    if settings.resume and begun.finished:
        run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
        log.info("%s is finished already; nothing to do", run.directory)
        return run
    val, test = data.split("val"), data.split("test")

    # ------------------------------------------------------------------ training
    trainer = autoencoder.build_network(settings.model, settings.image_size)
    shrunk = autoencoder.as_network_sees(train, settings.model)
    run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
    writer = run.writer()
    log.info(
        "%s autoencoder, %d px, %d healthy images", settings.model, settings.image_size, len(train)
    )
    state = training.TrainingState(run.directory)
    judge = Judge(trainer, val, settings, writer)
    fit(trainer, shrunk, judge, state, writer, settings)
    best = state.restore_best(trainer)
    train_seconds = state.seconds
    # A network that was never compiled: what is saved needs no optimizer of ours to be loaded.
    network = autoencoder.build_network(settings.model, settings.image_size)
    network.set_weights(trainer.get_weights())

    # ------------------------------------------------------------------ choices, on validation
    context = fit_context(train) if settings.model == "restoring" else None
    models = {s: scoring_model(network, context, healthy_images(val), s) for s in known}
    asks = {s: asked(m, ("score",)) for s, m in models.items()}
    on_val = score_versions(asks, val, settings)
    score = settings.score or choose_score(val.labels == 1, {s: x[0] for s, x in on_val.items()})
    model, val_scores = models[score], on_val[score][0]
    threshold, rule = choose_threshold(val.labels == 1, on_val[score], settings)
    log.info("threshold %.4g: %s", threshold, rule)
    healthy_scores = np.sort(val_scores[val.labels == 0])

    # ------------------------------------------------------------------ evaluation: test, once
    results: dict[str, Any] = {}
    look = asked(model, ("reconstruction", "anomaly_map"))
    scores = {"val": val_scores, "test": asks[score](test.images)["score"]}
    for split, part in (("val", val), ("test", test)):
        own = scores[split]
        results[split] = score_split(part, own, threshold, resamples=settings.resamples)
        write_predictions(run, split, part, own, threshold, percentile(own, healthy_scores))
        rows = examples(part.labels == 1, own, threshold)
        seen = {kind: look(part.images[chosen]) for kind, chosen in rows.items()}
        draw_split(run, split, part, own, threshold, rows, seen, writer)
    results["model"] = {
        "kind": "autoencoder",
        "network": settings.model,
        "score": score,
        "parameters": network.count_params(),
        "threshold": threshold,
        "threshold_rule": rule,
        "best_epoch": best["epoch"],
        "selection_loss": best["selection_loss"],
        "train_seconds": train_seconds,
    }
    results["history"] = state.history
    results["other_scores"] = {
        other: judge_score(asks[other], on_val[other], val, test, settings)
        for other in known
        if other != score
    }
    lesions = evaluation.lesion_masks(test.catalog, settings.image_size)
    if lesions is not None:
        maps = look(test.images)["anomaly_map"]
        results["test"] |= localisation_scores(maps, lesions)
    run.write_figure(
        "training_curves", figures.restoration_curves(state.history, int(best["epoch"])), writer
    )
    write_tensorboard_summary(writer, settings, results, name)

    # ------------------------------------------------------------------ export
    atomically(run.directory / "model.keras", lambda p: training.save_keras(model, p))
    folder = export(
        model,
        Path(settings.saved_models) / name,
        threshold=threshold,
        healthy_scores=healthy_scores,
        card=model_card(settings, data, results),
        resumed=settings.resume,
    )
    results["model"]["saved_model"] = str(folder)
    run.write_metrics(results)
    state.remove()
    for other, tables in results["other_scores"].items():
        log.info("the same network by --score %s: %s", other, auroc_line(tables))
    log.info("by --score %s: %s", score, auroc_line(results))
    log.info(result_line("test", results["test"]))
    log.info("run:         %s\nSavedModel:  %s", run.directory, folder)
    return run


def known_scores(settings: TrainAutoencoder) -> list[str]:
    """The scores of the model; UserError where the settings ask for one of the other model."""
    known = autoencoder.scores_of(settings.model)
    if settings.score and settings.score not in known:
        raise UserError(
            f"--score {settings.score} does not belong to --model {settings.model}; "
            f"it has {' and '.join(known)}"
        )
    return known


def settled(settings: TrainAutoencoder, healthy: int, begun: Run) -> TrainAutoencoder:
    """The settings with a number of epochs: that of the run that is resumed, or `epochs_of`."""
    if settings.epochs is None and settings.resume and (begun.directory / "config.json").exists():
        # If healthy images have come since, it is the data that have changed, and no setting.
        return dataclasses.replace(settings, epochs=begun.config()["settings"]["epochs"])
    return dataclasses.replace(settings, epochs=epochs_of(settings, healthy))


def epochs_of(settings: TrainAutoencoder | CompareAutoencoders, healthy: int) -> int:
    """How often so many healthy images are gone through, where the settings leave it open."""
    if settings.epochs is not None:
        return settings.epochs
    if getattr(settings, "model", "restoring") == "plain":
        return PLAIN_EPOCHS
    steps = pipeline.steps_per_epoch(healthy, min(settings.batch_size, healthy))
    return max(EPOCHS, min(math.ceil(FEWEST_STEPS / steps), MOST_EPOCHS))


def score_versions(
    asks: dict[str, Ask], val: Data, settings: TrainAutoencoder
) -> dict[str, np.ndarray]:
    """Scores float32 [C, N] of validation by name, as `choose_threshold` takes them.

    C is 3 where Youden's point of a restoring network is asked for, else 1. The plain network's
    error is one of grey levels, and the noise of another scanner would be most of it.
    """
    by_rate = settings.max_false_alarm is not None or settings.min_sensitivity is not None
    alone = settings.model == "plain" or by_rate or not (val.labels == 1).any()
    found: dict[str, list[np.ndarray]] = {name: [] for name in asks}
    for change in VERSIONS[:1] if alone else VERSIONS:
        images = change(val.images, THRESHOLD_SEED)
        for name, ask in asks.items():
            found[name].append(ask(images)["score"])
    return {name: np.stack(scores) for name, scores in found.items()}


def choose_score(sick: np.ndarray, scores: dict[str, np.ndarray]) -> str:
    """The score of the highest AUROC on validation; without sick images there, the first.

    sick: bool [N]; scores: float32 [N] by name. To three digits, and of equals the first.
    """
    if not sick.any():
        return next(iter(scores))
    areas = {
        name: round(metrics.detection_scores(sick, own, threshold=np.inf)["auroc"], 3)
        for name, own in scores.items()
    }
    return max(areas, key=lambda name: areas[name])


def _check_numbers(settings: TrainAutoencoder) -> None:
    check_numbers(settings, epochs=1)
    autoencoder.check_size(settings.model, settings.image_size)
    if settings.max_false_alarm is not None and settings.min_sensitivity is not None:
        raise UserError("give --max-false-alarm or --min-sensitivity, not both")
    for field in ("max_false_alarm", "min_sensitivity"):
        value = getattr(settings, field)
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{field.replace('_', '-')} is a share between 0 and 1, not {value}")


# ---------------------------------------------------------------------- training


def healthy_images(train: Data) -> np.ndarray:
    """The images that the network may learn from: uint8 [N, S, S, 1], every one healthy."""
    return train.images[train.labels == 0]


def fit(
    network: keras.Model,
    train: np.ndarray,
    judge: "Judge",
    state: training.TrainingState,
    writer: tf.summary.SummaryWriter,
    settings: TrainAutoencoder,
) -> None:
    """Trains from the state's epoch to the last, one checkpoint an epoch."""
    epochs = settings.epochs
    assert epochs is not None
    batch_size = min(settings.batch_size, len(train))
    steps = pipeline.steps_per_epoch(len(train), batch_size)
    network.compile(
        training.averaged_adamw(settings.learning_rate, steps=steps * epochs, weight_decay=1e-4),
        loss=losses(settings.model),
        loss_weights=LOSS_WEIGHTS[settings.model],
    )
    outputs = network(tf.zeros([1, *network.input_shape[1:]]), training=False)
    training.build_all(network, keras.tree.map_structure(tf.zeros_like, outputs))
    if state.epochs_done() >= epochs:
        return
    if state.exists():
        log.info("going on from the checkpoint of epoch %d", state.epochs_done())
        state.load(network)
    network.fit(
        training_batches(train, settings, batch_size, range(state.epochs_done(), epochs)),
        initial_epoch=state.epochs_done(),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            training.EpochEnd(
                network,
                judge,
                state,
                writer,
                epochs=epochs,
                patience=epochs,
                line=lambda entry: epoch_line(entry, epochs),
            )
        ],
        shuffle=False,
        verbose=0,
    )


def fit_context(train: np.ndarray, kind: type[HealthyContext] = HealthyContext) -> HealthyContext:
    """What healthy lungs look like in their surroundings; train: healthy, uint8 [N, S, S, 1]."""
    context = kind(train.shape[1])
    context.fit(
        versions(train, JUDGE_SEED + 1),
        opacities.lung_fields(autoencoder.as_network_sees(train, "restoring")),
        coded=2,
    )
    return context


def scoring_model(
    network: keras.Model, context: HealthyContext | None, healthy_val: np.ndarray, score: str
) -> keras.Model:
    """The trained network with its score: images [N, S, S, 1] in 0..255 -> see `autoencoder`.

    context: of the restoring network; healthy_val: uint8 [N, S, S, 1], healthy images alone.
    """
    if score not in ("combined", "context"):
        return autoencoder.build_autoencoder(network, score)
    assert context is not None
    seen = np.concatenate(versions(healthy_val, JUDGE_SEED))
    return autoencoder.build_combined(network, context, seen, score)


def versions(healthy: np.ndarray, seed: int) -> np.ndarray:
    """Each image as it is, under another exposure and from another scanner: [3, N, S, S, 1].

    So that the score of healthy images stays where it is when the scanner changes. Without, all
    of them come to lie above the threshold where there is more noise, and half of them where there
    is more light.
    """
    return np.stack([change(healthy, seed) for change in VERSIONS])


def losses(model: str) -> dict[str, Any]:
    """Mean absolute error of what is removed and cross-entropy of the mark; for the plain network
    the squared error of the reconstruction."""
    if model == "plain":
        return {"reconstruction": keras.losses.MeanSquaredError()}
    return {
        "removed": keras.losses.MeanAbsoluteError(),
        "mark": keras.losses.BinaryCrossentropy(from_logits=True),
    }


def training_batches(
    train: np.ndarray, settings: TrainAutoencoder, batch_size: int, epochs: range
) -> tf.data.Dataset:
    """What the network learns from: (inputs, targets) as it sees them, from healthy images alone.

    train: uint8 [N, T, T, 1], as the network sees them.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": settings.seed,
        "epochs": epochs,
        "strength": settings.augmentation,
    }
    if settings.model == "restoring":
        return opacities.restoration_batches(train, opacities.lung_fields(train), **common)
    stream = pipeline.training_batches(train, np.zeros(len(train), np.int64), **common)

    @pipeline.as_written
    def to_itself(images: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        standardised = opacities.standardised(images[..., :1])
        return standardised, {"reconstruction": standardised}

    return stream.map(to_itself)


class Judge:
    """Judges the network after every epoch; shows the same reconstructions each time.

    `selection_loss`, by which the epoch is chosen, is the training loss on healthy validation
    images, painted the same way each time. The AUROC on validation is for a person to watch.
    """

    def __init__(
        self,
        network: keras.Model,
        val: Data,
        settings: TrainAutoencoder,
        writer: tf.summary.SummaryWriter,
    ) -> None:
        # The context is fitted once, and knows nothing of epochs.
        watched = settings.score or known_scores(settings)[0]
        watched = "removed" if watched in ("combined", "context") else watched
        model = autoencoder.build_autoencoder(network, watched)
        self._score = asked(model, ("score",))
        self._look = asked(model, ("reconstruction", "anomaly_map"))
        self._network, self._val, self._writer = network, val, writer
        self._losses = losses(settings.model)
        self._loss_weights = LOSS_WEIGHTS[settings.model]
        healthy = autoencoder.as_network_sees(healthy_images(val), settings.model)
        self._batches = list(
            training_batches(
                healthy,
                dataclasses.replace(settings, seed=JUDGE_SEED),
                min(settings.batch_size, len(healthy)),
                range(1),
            )
        )
        sick = np.flatnonzero(val.labels == 1)
        self._shown = np.concatenate([np.flatnonzero(val.labels == 0)[:3], sick[:3]])

    def __call__(self, epoch: int) -> dict[str, float]:
        """{epoch, val_loss, val_auroc, selection_loss} of the network as it stands."""
        values = []
        for inputs, targets in self._batches:
            outputs = self._network(inputs, training=False)
            values.append(
                sum(
                    self._loss_weights[key] * float(loss(targets[key], outputs[key]))
                    for key, loss in self._losses.items()
                )
            )
        loss = float(np.mean(values))
        scores = self._score(self._val.images)["score"]
        if not (np.isfinite(loss) and np.isfinite(scores).all()):
            raise FloatingPointError("the outputs are not finite")
        self._show(epoch, scores)
        sick = self._val.labels == 1
        area = metrics.detection_scores(sick, scores, threshold=np.inf)["auroc"]
        return {"epoch": epoch, "val_loss": loss, "val_auroc": area, "selection_loss": loss}

    def _show(self, epoch: int, scores: np.ndarray) -> None:
        rows = self._shown
        outputs = self._look(self._val.images[rows])
        maps = outputs["anomaly_map"]
        pictures = [
            self._val.images[rows, ..., 0].astype(np.float32) / 255,
            np.clip(outputs["reconstruction"][..., 0] / 255, 0, 1),
            maps / max(float(maps.max()), 1e-6),
        ]
        with self._writer.as_default(step=epoch):
            tf.summary.image(
                "image, reconstruction, anomaly map",
                np.concatenate(pictures, axis=2)[..., None],
                max_outputs=len(rows),
            )
            for label, kind in enumerate(self._val.classes):
                own = scores[self._val.labels == label]
                if len(own):
                    tf.summary.histogram(f"score/{kind}", own)


def asked(model: keras.Model, outputs: Sequence[str]) -> Ask:
    """Some outputs of `build_autoencoder`, as a function of uint8 [N, S, S, 1]; traced once.

    A map is as large as its image in float32: ask for those of a few images, or of phantoms.
    """
    function = training.compiled(keras.Model(model.input, {k: model.output[k] for k in outputs}))

    def ask(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = [
            function(tf.constant(images[start : start + BATCH], tf.float32))
            for start in range(0, len(images), BATCH)
        ]
        return {k: np.concatenate([batch[k] for batch in batches]) for k in outputs}

    return ask


# ---------------------------------------------------------------------- threshold and scores


def choose_threshold(
    sick: np.ndarray, scores: np.ndarray, settings: TrainAutoencoder
) -> tuple[float, str]:
    """Threshold on the score, at or above which an image is an anomaly, and the rule in words.

    sick: bool [N]; scores: float32 [C, N], of validation images as they are, then in other versions
    of them. Youden's J on the ROC curve of all, which of few images is decided by one or two, or
    what the settings ask for of the images as they are. With no sick image there is no curve, and
    Youden's J would sink to the lowest score: then a quantile of the healthy ones.
    """
    plain = scores[0]
    if sick.any():
        found = "on the ROC curve of validation"
        if settings.min_sensitivity is not None:
            rule = f"min-sensitivity:{settings.min_sensitivity}"
        elif settings.max_false_alarm is not None:
            rule = f"min-specificity:{round(1 - settings.max_false_alarm, 9)}"
        else:
            if len(scores) > 1:
                found += ", as it is, under another exposure and from another scanner"
            sick, plain, rule = np.tile(sick, len(scores)), scores.ravel(), "youden"
        return metrics.operating_point(sick, plain, rule), f"{rule} {found}"
    share = settings.max_false_alarm or FALLBACK_FALSE_ALARM
    threshold = float(np.quantile(plain, 1 - share, method="higher"))
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf))), (
        f"{1 - share:.0%} of the healthy validation images lie below; there is no sick image in "
        "validation, so no ROC curve"
    )


def score_split(
    part: Data, scores: np.ndarray, threshold: float, *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The table of one split for `metrics.json`, with `<metric>/bacterial` and `<metric>/viral`.

    Those are of the healthy images and the sick ones of that finding, at the same threshold.
    """
    findings = np.array([r.finding for r in part.catalog.radiographs])
    healthy = part.labels == 0
    subsets = {"": np.ones(len(scores), bool)}
    for finding in ("bacterial", "viral"):
        if np.any(findings == finding):
            subsets[f"/{finding}"] = healthy | (findings == finding)

    def table(weights: np.ndarray) -> dict[str, float]:
        found: dict[str, float] = {}
        for suffix, rows in subsets.items():
            scored = metrics.detection_scores(
                ~healthy[rows], scores[rows], threshold, weights[rows]
            )
            # Specificity is of the healthy, whatever the sick.
            kept = scored if not suffix else {k: scored[k] for k in ("auroc", "auprc", "recall")}
            found |= {f"{metric}{suffix}": value for metric, value in kept.items()}
        return found

    scored: dict[str, Any] = table(np.ones(len(scores)))
    scored["images"], scored["patients"] = len(scores), len(set(part.catalog.patients))
    scored["ci95"] = metrics.intervals(table, part.catalog.patients, resamples=resamples, seed=seed)
    return scored


def judge_score(
    ask: Ask, on_val: np.ndarray, val: Data, test: Data, settings: TrainAutoencoder
) -> dict[str, dict[str, Any]]:
    """{"val": table, "test": table} of a score that was not taken, to compare.

    on_val: float32 [C, N], as `choose_threshold` takes it.
    """
    threshold, _ = choose_threshold(val.labels == 1, on_val, settings)
    return {
        split: score_split(part, own, threshold, resamples=settings.resamples)
        for split, part, own in (
            ("val", val, on_val[0]),
            ("test", test, ask(test.images)["score"]),
        )
    }


def percentile(scores: np.ndarray, healthy_scores: np.ndarray) -> np.ndarray:
    """Share in percent of the healthy validation images whose score is below: float [N]."""
    return 100.0 * np.searchsorted(healthy_scores, scores) / len(healthy_scores)


def write_predictions(
    run: Run,
    split: str,
    part: Data,
    scores: np.ndarray,
    threshold: float,
    ranks: np.ndarray,
) -> None:
    """`predictions-<split>.csv`: path, patient, finding, label, score, percentile, predicted."""
    rows = zip(part.catalog.radiographs, part.labels, scores, ranks, strict=True)
    write_csv(
        run.directory / f"predictions-{split}.csv",
        ["path", "patient", "finding", "label", "score", "percentile", "predicted"],
        [
            [r.path, r.patient, r.finding, part.classes[y], f"{s:.8g}", f"{p:.1f}",
             part.classes[int(s >= threshold)]]
            for r, y, s, p in rows
        ],
    )  # fmt: skip


def localisation_scores(maps: np.ndarray, lesions: np.ndarray) -> dict[str, float]:
    """How well maps float [N, S, S] show the lesions bool [N, S, S], over the images that have one.

    pixel_auroc, aupro and pointing, and pointing_chance, what a random pixel would hit.
    """
    has = lesions.any(axis=(1, 2))
    maps, lesions = maps[has], lesions[has]
    if not len(maps):
        return {}
    return {
        "pixel_auroc": metrics.pixel_auroc(maps, lesions),
        "aupro": metrics.per_region_overlap(maps, lesions),
        "pointing": float(metrics.pointing_hits(maps, lesions).mean()),
        "pointing_chance": float(lesions.mean()),
    }


# ---------------------------------------------------------------------- what is written down


def draw_split(
    run: Run,
    split: str,
    part: Data,
    scores: np.ndarray,
    threshold: float,
    shown: dict[str, np.ndarray],
    seen: dict[str, dict[str, np.ndarray]],
    writer: tf.summary.SummaryWriter,
) -> None:
    """The figures of one split, as PNGs and in TensorBoard.

    shown: of `examples`; seen: what the model makes of each kind, a `reconstruction` and an
    `anomaly_map` of each image.
    """
    sick = part.labels == 1
    if sick.any():
        # One column for each class; of a score, only the order matters.
        columns = np.stack([-scores, scores], axis=1)
        called = (scores >= threshold).astype(np.int64)
        for name, figure in {
            "roc": figures.roc(part.labels, columns, part.classes, threshold),
            "precision_recall": figures.precision_recall(part.labels, columns, part.classes),
            "confusion": figures.confusion(part.labels, called, part.classes),
        }.items():
            run.write_figure(f"{name}-{split}", figure, writer)
    findings = np.array([r.finding for r in part.catalog.radiographs])
    run.write_figure(
        f"scores-{split}", figures.score_histogram(scores, findings, threshold), writer
    )
    maps = np.concatenate([outputs["anomaly_map"] for outputs in seen.values()])
    for kind, rows in shown.items():
        figure = figures.reconstructions(
            part.images[rows],
            seen[kind]["reconstruction"].reshape(seen[kind]["anomaly_map"].shape),
            seen[kind]["anomaly_map"],
            [f"{findings[i]}\nscore {scores[i]:.3g}" for i in rows],
            brightest=float(np.quantile(maps, 0.999)),
        )
        run.write_figure(f"{kind}-{split}", figure, writer)


def examples(
    sick: np.ndarray, scores: np.ndarray, threshold: float, count: int = 6
) -> dict[str, np.ndarray]:
    """Rows of images that are worth a look: typical ones, missed ones, and false alarms.

    A kind of which there is none is left out.
    """
    called = scores >= threshold
    healthy, ill = np.flatnonzero(~sick), np.flatnonzero(sick)

    def middle(rows: np.ndarray) -> np.ndarray:
        ordered = rows[np.argsort(scores[rows])]
        start = max(0, (len(ordered) - count // 2) // 2)
        return ordered[start : start + count // 2]

    missed, alarms = np.flatnonzero(sick & ~called), np.flatnonzero(~sick & called)
    rows = {
        "typical": np.concatenate([middle(healthy), middle(ill)]),
        "missed": missed[np.argsort(scores[missed])][:count],
        "false_alarms": alarms[np.argsort(-scores[alarms])][:count],
    }
    return {kind: chosen for kind, chosen in rows.items() if len(chosen)}


def write_tensorboard_summary(
    writer: tf.summary.SummaryWriter,
    settings: TrainAutoencoder,
    results: dict[str, Any],
    name: str,
) -> None:
    """Final scores as scalars, and the settings for the HParams table."""
    from tensorboard.plugins.hparams import api as hparams

    shown = ("model", "image_size", "epochs", "batch_size", "learning_rate", "augmentation")
    with writer.as_default(step=0):
        hparams.hparams(
            {**{k: getattr(settings, k) for k in shown}, "score": results["model"]["score"]},
            trial_id=name,
        )
        for split in ("val", "test"):
            for metric in ("auroc", "accuracy", "recall", "specificity", "f1"):
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def export(
    model: keras.Model,
    base: Path,
    *,
    threshold: float,
    healthy_scores: np.ndarray,
    card: dict[str, Any],
    resumed: bool = False,
) -> Path:
    """Writes the autoencoder as the next version under `base`; returns its folder.

    Signatures (N images; S the model's size):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> score float32 [N], threshold
      float32 [N], is_anomaly bool [N], percentile float32 [N]: the share in percent of healthy
      validation images with a lower score;
    - `explain`: image_bytes -> reconstruction float32 [N, S, S] in 0..255, anomaly_map float32
      [N, S, S], score.
    """
    size = int(model.input_shape[1])
    ladder = tf.constant(healthy_scores, tf.float32)

    images = tf.TensorSpec([None, size, size, 1], tf.float32)
    # Traced once, and stored once, for both signatures.
    network = tf.function(
        lambda x: model(x, training=False), input_signature=[images], autograph=False
    )

    def run_model(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(tf.cast(serving.decode_images(image_bytes, size), tf.float32))

    def detect(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        score = run_model(image_bytes)["score"]
        below = tf.searchsorted(ladder, score)
        return {
            "score": score,
            "threshold": tf.fill(tf.shape(score), tf.constant(threshold, tf.float32)),
            "is_anomaly": score >= tf.constant(threshold, tf.float32),
            "percentile": 100.0 * tf.cast(below, tf.float32) / len(healthy_scores),
        }

    def explain(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = run_model(image_bytes)
        reconstruction = tf.clip_by_value(outputs["reconstruction"][..., 0], 0.0, 255.0)
        return {**outputs, "reconstruction": reconstruction}

    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    signatures: dict[str, serving.Signature] = {
        "serving_default": (detect, image_bytes),
        "explain": (explain, image_bytes),
    }
    return store.write_version(
        base, lambda folder: serving.save(signatures, folder), card=card, resumed=resumed
    )


def evaluate(settings: Evaluate, served: serving.ServedModel) -> Run:
    """Scores an exported autoencoder on a folder, by its own signatures and threshold."""
    part = evaluation.open_part(settings, served, "binary", catalogs.task_classes("binary"))
    run = open_run(settings.logs, "evaluate", settings.name, settings, part.catalog)
    paths, split = part.catalog.paths, settings.split
    detect, explain = served.ask_files("serving_default"), served.ask_files("explain")
    batches = range(0, len(paths), settings.batch_size)
    parts = [detect(paths[start : start + settings.batch_size]) for start in batches]
    outputs = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    threshold = float(outputs["threshold"][0])
    scores = score_split(
        part, outputs["score"], threshold, resamples=settings.resamples, seed=settings.seed
    )
    write_predictions(run, split, part, outputs["score"], threshold, outputs["percentile"])
    shown = examples(part.labels == 1, outputs["score"], threshold)
    seen = {kind: explain([paths[i] for i in rows]) for kind, rows in shown.items()}
    writer = run.writer()
    draw_split(run, split, part, outputs["score"], threshold, shown, seen, writer)

    def scored(answers: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.detection_scores(part.labels == 1, answers["score"], threshold)

    def recalls(table: dict[str, Any]) -> list[float]:
        return [table["specificity"], table["recall"]]

    shifted = evaluation.score_shifts(settings, served, part, run, writer, scores, scored, recalls)
    model = {"saved_model": str(served.folder), **served.card}
    run.write_metrics({split: scores, **shifted, "model": model})
    log.info("%s\nrun: %s", result_line(split, scores), run.directory)
    return run


def model_card(settings: TrainAutoencoder, data: Data, results: dict[str, Any]) -> dict[str, Any]:
    """What travels with the SavedModel: what it is, how it did, what it is not."""
    shown = ("auroc", "auprc", "accuracy", "recall", "specificity", "f1")
    train = data.catalog.rows("train")
    sick = train[data.labels[train] == 1]  # which nothing here has looked at
    seen = data.catalog.take(np.setdiff1d(np.arange(len(data.catalog)), sick))
    return {
        "kind": "autoencoder",
        "network": settings.model,
        "score": results["model"]["score"],
        "image_size": settings.image_size,
        "threshold": results["model"]["threshold"],
        "threshold_rule": results["model"]["threshold_rule"],
        **data.catalog.about(),
        "images": seen.about()["images"],
        "learnt_from": seen.learnt_from(),
        "seed": settings.seed,
        "metrics": {s: {k: results[s][k] for k in shown} for s in ("val", "test")},
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, no medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def epoch_line(entry: dict[str, float], epochs: int) -> str:
    """One line about an epoch."""
    return (
        f"epoch {entry['epoch']}/{epochs}: loss {entry['train_loss']:.4f}, on healthy validation "
        f"{entry['val_loss']:.4f}; AUROC on validation {entry['val_auroc']:.4f}"
    )


def auroc_line(tables: dict[str, Any]) -> str:
    """AUROC on validation and on test with its interval."""
    test = metrics.with_interval(tables["test"], "auroc")
    return f"AUROC on validation {tables['val']['auroc']:.3f}, on test {test}"


def result_line(split: str, scores: dict[str, Any]) -> str:
    """The headline scores with their intervals, as one line."""
    headline = ("auroc", "auprc", "accuracy", "recall", "specificity", "f1")
    return f"{split}: " + ", ".join(f"{m} {metrics.with_interval(scores, m)}" for m in headline)
