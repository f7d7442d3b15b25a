"""Scores, predictions and figures of a classifier on a split; any SavedModel of ours on a folder.

python scripts/evaluate.py --model saved_models/vgg16-binary --data other_hospital
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics, serving
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import medmnist, pipeline
from cxr_tf.data.shifts import SHIFTS
from cxr_tf.errors import UserError
from cxr_tf.runs import Run, as_name, open_run, refuse_existing
from cxr_tf.settings import Evaluate, check_numbers

log = logging.getLogger(__name__)

# What a faster way to calculate may cost on validation, before it is advised against.
MOST_AUROC_LOST = 0.002

OTHER_DATA = (
    "the classifier was trained on other data, or on other splits of them: what is test here it "
    "may have seen"
)

HEADLINE = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")


@dataclass(frozen=True)
class Data:
    """A checked catalogue with its decoded images: uint8 [N, S, S, 1]; labels int64 [N]."""

    catalog: catalogs.Catalog
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def take(self, rows: np.ndarray) -> "Data":
        """Some of the rows, copied."""
        return replace(
            self,
            catalog=self.catalog.take(rows),
            images=self.images[rows],
            labels=self.labels[rows],
        )

    def split(self, name: str) -> "Data":
        """The rows of one split; no copy of the images where they lie together."""
        rows = self.catalog.rows(name)
        together = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1
        where = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        return replace(
            self,
            catalog=self.catalog.take(rows),
            images=self.images[where],
            labels=self.labels[where],
        )


def decode(
    catalog: catalogs.Catalog, size: int, *, skip: bool
) -> tuple[catalogs.Catalog, np.ndarray]:
    """The images of a catalogue, uint8 [N, size, size, 1], and the catalogue in their order.

    Its rows are ordered by split, so that `Data.split` copies none of what may be gigabytes. Raises
    UserError for a file that cannot be read, or with `skip` leaves it out.
    """
    order = {split: number for number, split in enumerate(catalogs.SPLITS)}
    splits = [order.get(r.split, len(order)) for r in catalog.radiographs]
    catalog = catalog.take(np.argsort(splits, kind="stable"))
    images, unreadable = pipeline.load_images(catalog.paths, size)
    return leave_out_unreadable(catalog, images, unreadable, skip=skip)


def leave_out_unreadable(
    catalog: catalogs.Catalog, images: np.ndarray, unreadable: dict[int, str], *, skip: bool
) -> tuple[catalogs.Catalog, np.ndarray]:
    """Drops rows that could not be decoded, or raises UserError unless that is asked for."""
    if not unreadable:
        return catalog, images
    for row, reason in unreadable.items():
        log.info("  unreadable: %s (%s)", catalog.paths[row], reason)
    if not skip:
        row, reason = next(iter(unreadable.items()))
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise UserError(
            f"{catalog.paths[row]}: {reason}{more}; mend or remove, or leave them out with "
            "--skip-unreadable"
        )
    keep = np.setdiff1d(np.arange(len(catalog)), list(unreadable))
    if not len(keep):
        raise UserError("none of the images can be read")
    return catalog.take(keep), images[keep]


def lesion_masks(catalog: catalogs.Catalog, size: int) -> np.ndarray | None:
    """Where the lesions of phantoms are: bool [N, size, size]; None for real radiographs.

    A phantom <folder>/test/VIRAL/x.png has its mask in <folder>/masks/test/VIRAL/x.png.
    """
    if not catalog.is_phantom:
        return None
    paths = []
    for path in (Path(p).absolute() for p in catalog.paths):
        if len(path.parents) < 3:
            return None
        folder = path.parents[2]
        paths.append(str(folder / "masks" / path.relative_to(folder)))
    masks, unreadable = pipeline.load_images(paths, size)
    return None if unreadable else masks[..., 0] >= 128


def evaluate(settings: Evaluate) -> Run:
    """Scores a SavedModel on a folder, by its own `serving_default`; returns the finished run.

    With a precision other than float32 it also measures, on validation, what that costs and gains.

    Raises UserError for a model or a folder that is none, for labels the model does not know, and
    for an engine or a precision that cannot be had.
    """
    check_numbers(settings)
    served = serving.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    settings = replace(settings, name=settings.name or name_of(settings, served))
    refuse_existing(settings.logs, "evaluate", settings.name, settings)
    if served.card["kind"] == "autoencoder":
        from cxr_tf import anomaly  # which imports this module

        return anomaly.evaluate(settings, served)
    part = open_part(settings, served, served.card["task"], served.classes)
    cost = precision_cost(settings, served) if served.precision != "float32" else {}
    run = open_run(settings.logs, "evaluate", settings.name, settings, part.catalog)
    probabilities, predicted = serving.predict_files(
        served, part.catalog.paths, batch_size=settings.batch_size
    )
    split, threshold = settings.split, served.card.get("threshold", 0.5)
    run.write_predictions(split, part.catalog, part.labels, probabilities, predicted, part.classes)
    scores = score(part, probabilities, predicted, resamples=settings.resamples, seed=settings.seed)
    writer = run.writer()
    draw_split(run, split, part, probabilities, threshold, writer, scores)

    def scored(answers: dict[str, np.ndarray]) -> dict[str, float]:
        called = np.array([part.classes.index(label) for label in answers["label"]])
        return metrics.classification_scores(
            part.labels, answers["probabilities"], called, part.classes
        )

    def recalls(table: dict[str, Any]) -> list[float]:
        return [table[f"recall/{kind}"] for kind in part.classes]

    shifted = score_shifts(settings, served, part, run, writer, scores, scored, recalls)
    ran_on = {"name": served.engine_of("serving_default"), "precision": served.precision, **cost}
    model = {"saved_model": str(served.folder), **served.card}
    run.write_metrics({split: scores, **shifted, "model": model, "engine": ran_on})
    log.info("%s\nrun: %s", result_line(split, scores), run.directory)
    return run


def score_shifts(
    settings: Evaluate,
    served: serving.ServedModel,
    part: Data,
    run: Run,
    writer: tf.summary.SummaryWriter,
    scores: dict[str, Any],
    scored: Callable[[dict[str, np.ndarray]], dict[str, float]],
    recalls: Callable[[dict[str, Any]], Sequence[float]],
) -> dict[str, Any]:
    """With `--shifts` {"shifts": table of each}, and their figure beside `scores`; else empty.

    scored: from answers to a table; recalls: of a table, one for each of the part's classes.
    """
    if not settings.shifts:
        return {}
    shifted = under_shifts(served, part.images, scored, batch_size=settings.batch_size)
    drawn = {
        name: dict(zip(part.classes, recalls(table), strict=True))
        for name, table in {"as they are": scores, **shifted}.items()
    }
    run.write_figure(f"shifts-{settings.split}", figures.shifts(drawn, part.classes), writer)
    return {"shifts": shifted}


def under_shifts(
    served: serving.ServedModel,
    images: np.ndarray,
    scored: Callable[[dict[str, np.ndarray]], dict[str, float]],
    *,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """What `scored` makes of a model's answers under each shift of `data.shifts`; logged.

    images: uint8 [N, S, S, 1], decoded at the model's size. Each shifted one is asked about as the
    PNG that it would be.
    """
    ask = served.ask("serving_default")
    width = max(map(len, SHIFTS))
    found = {}
    log.info("  %s  AUROC  accuracy  recall  specificity", "under a shift".ljust(width))
    for name, shift in SHIFTS.items():
        parts = []
        for start in range(0, len(images), batch_size):
            shifted = shift(images[start : start + batch_size])
            parts.append(ask([tf.io.encode_png(image).numpy() for image in shifted]))
        answers = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        found[name] = {key: float(value) for key, value in scored(answers).items()}
        told = [found[name][k] for k in ("auroc", "accuracy", "recall", "specificity")]
        log.info("  %s  %.3f     %.3f   %.3f        %.3f", name.ljust(width), *told)
    return found


def precision_cost(settings: Evaluate, served: serving.ServedModel) -> dict[str, float]:
    """What a model's precision costs and gains against TensorFlow's float32, on validation; logged.

    Of a folder without split folders, on all of it. Both take the same batches in turn, from files
    to answers, after a warm-up.
    """
    try:
        on_val = replace(settings, split="val")
        part = open_part(on_val, served, served.card["task"], served.classes)
    except UserError as error:
        raise UserError(f"--engine-precision is judged on validation: {error}") from None
    exact = replace(served, engine="tensorflow", precision="float32")
    began = time.perf_counter()
    fast = served.ask("serving_default")
    preparing = time.perf_counter() - began
    asks = [exact.ask("serving_default"), fast]
    seconds = [0.0, 0.0]
    found: list[list[np.ndarray]] = [[], []]
    paths = part.catalog.paths
    for start in range(0, len(paths), settings.batch_size):
        contents = served.decode(paths[start : start + settings.batch_size])
        for k, ask in enumerate(asks):
            if start == 0:
                ask(contents)
            began = time.perf_counter()
            found[k].append(ask(contents)["probabilities"])
            seconds[k] += time.perf_counter() - began
    threshold = served.card["threshold"]
    auroc = []
    for answers in found:
        probabilities = np.concatenate(answers)
        predicted = serving.decide(tf.constant(probabilities), threshold).numpy()
        scores = metrics.classification_scores(part.labels, probabilities, predicted, part.classes)
        auroc.append(float(scores["auroc"]))
    lost, gain = auroc[0] - auroc[1], seconds[0] / seconds[1]
    log.info(
        "%s on OpenVINO against float32 on TensorFlow, %d validation images: AUROC %.4f against "
        "%.4f (%.4f lost), %.1f times as fast after %.0f s to get ready%s",
        *(served.precision, len(paths), auroc[1], auroc[0], lost, gain, preparing),
        ". That is too much: leave out --engine-precision" if lost > MOST_AUROC_LOST else "",
    )
    return {
        "val_auroc": auroc[1],
        "val_auroc_float32": auroc[0],
        "times_as_fast": gain,
        "seconds_to_get_ready": preparing,
    }


def open_part(
    settings: Evaluate, served: serving.ServedModel, task: str, classes: tuple[str, ...]
) -> Data:
    """The images to score a SavedModel on, decoded at its size for the figures.

    A folder without split folders is scored whole, one with them as it is divided; unless it is the
    one that the model was trained on: then it is divided as it was for that.
    """
    catalog = catalogs.open_catalog(settings.data, seed=settings.seed, resplit=False, task=task)
    card = served.card
    trained_on = as_trained_on(catalog, card, skip=settings.skip_unreadable)
    if trained_on is not None:
        if trained_on.notes != catalog.notes:
            log.info("  the model was trained on these images: divided as they were then")
        catalog = trained_on
    if settings.split != "all" and any(r.split for r in catalog.radiographs):
        catalog = catalog.take(catalog.rows(settings.split))
        if not len(catalog):
            raise UserError(f"{settings.data} has no {settings.split} split; see --split")
    learnt_from = served.learnt_from()
    if seen := sum(r.digest in learnt_from for r in catalog.radiographs):
        note = f"the model was trained on or chosen by {seen} of these: scores will be too good"
        catalog = replace(catalog, notes=(*catalog.notes, note))
    log.info(catalogs.describe(catalog))
    catalog, images = decode(catalog, card["image_size"], skip=settings.skip_unreadable)
    labels = catalog.labels(task, classes)
    if absent := [name for k, name in enumerate(classes) if not np.any(labels == k)]:
        log.info("  note: no image of %s: scores that need one are nan", " and ".join(absent))
    return Data(catalog, images, labels, classes)


def as_trained_on(
    catalog: catalogs.Catalog, card: dict[str, Any], *, skip: bool
) -> catalogs.Catalog | None:
    """The catalogue with the splits that a model was trained and tested by; None for other images.

    skip: that training may have left out files that cannot be read, after it had drawn the splits.
    """
    again = catalogs.settle_splits(catalog, card.get("seed", 0))
    trained = card.get("data_fingerprint")
    if again.fingerprint() != trained and skip:
        _, unreadable = pipeline.load_images(again.paths, card["image_size"])
        again = again.take(np.setdiff1d(np.arange(len(again)), list(unreadable)))
    return again if again.fingerprint() == trained else None


def name_of(settings: Evaluate, served: serving.ServedModel) -> str:
    """A name for an evaluation that has none: model, data, and what else it was asked for."""
    parts = [served.card["name"], Path(settings.data).resolve().name]
    if settings.split != "test":
        parts.append(settings.split)
    if served.precision != "float32":
        parts.append(served.precision)
    if settings.shifts:
        parts.append("shifts")
    return as_name("-".join(parts))


def score_split(
    run: Run,
    split: str,
    part: Data,
    probabilities: np.ndarray,
    threshold: float,
    *,
    resamples: int,
) -> dict[str, Any]:
    """Scores with intervals; writes the predictions."""
    predicted = serving.decide(tf.constant(probabilities), threshold).numpy()
    run.write_predictions(split, part.catalog, part.labels, probabilities, predicted, part.classes)
    return score(part, probabilities, predicted, resamples=resamples)


def score(
    part: Data, probabilities: np.ndarray, predicted: np.ndarray, *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The table of one split for `metrics.json`: scores, counts and 95 % intervals."""
    table: dict[str, Any] = metrics.classification_scores(
        part.labels, probabilities, predicted, part.classes
    )
    if part.catalog.published_split and part.classes == catalogs.task_classes("binary"):
        table |= medmnist.scores(part.labels, probabilities)
    table["images"], table["patients"] = len(part.labels), len(set(part.catalog.patients))
    table["ci95"] = metrics.confidence_intervals(
        part.labels,
        probabilities,
        predicted,
        part.catalog.patients,
        part.classes,
        resamples=resamples,
        seed=seed,
    )
    return table


def draw_split(
    run: Run,
    split: str,
    part: Data,
    probabilities: np.ndarray,
    threshold: float,
    writer: tf.summary.SummaryWriter,
    scores: dict[str, Any],
) -> None:
    """The figures of one split, as PNGs and in TensorBoard, with its PR curves."""
    labels, classes = part.labels, part.classes
    predicted = serving.decide(tf.constant(probabilities), threshold).numpy()
    drawn = {
        "roc": figures.roc(labels, probabilities, classes, threshold),
        "precision_recall": figures.precision_recall(labels, probabilities, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, probabilities, scores["ece"]),
        "most_wrong": figures.most_wrong(part.images, labels, probabilities, predicted, classes),
        "samples": sample_predictions(part, probabilities, predicted),
    }
    for name, figure in drawn.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    write_pr_curves(writer, split, labels, probabilities, classes)


def write_pr_curves(
    writer: tf.summary.SummaryWriter,
    split: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
) -> None:
    """For TensorBoard's PR-curve plugin: the second of two classes, or every one of more."""
    from tensorboard.plugins.pr_curve import summary as pr_curve

    with writer.as_default(step=0):
        for k in range(1 if len(classes) == 2 else 0, len(classes)):
            summary = pr_curve.pb(
                f"{split}/{classes[k]}", labels=labels == k, predictions=probabilities[:, k]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)


def sample_predictions(part: Data, probabilities: np.ndarray, predicted: np.ndarray) -> Any:
    """A dozen radiographs evenly drawn from the split, with what was predicted of them."""
    shown = np.linspace(0, len(part.labels) - 1, min(12, len(part.labels))).astype(int)
    titles = [
        f"true {part.classes[part.labels[i]]}\n"
        f"predicted {part.classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    return figures.radiograph_grid(part.images[shown], titles)


def result_line(split: str, scores: dict[str, Any]) -> str:
    """The headline scores with their intervals, as one line."""
    headline = ("auroc", "accuracy", "recall", "specificity", "f1")
    return f"{split}: " + ", ".join(f"{m} {metrics.with_interval(scores, m)}" for m in headline)
