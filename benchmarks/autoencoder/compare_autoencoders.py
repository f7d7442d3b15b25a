"""Compare variants of the autoencoder on validation data; an interrupted comparison resumes.

    python scripts/compare_autoencoders.py --data chest_xray
    python scripts/compare_autoencoders.py --data chest_xray --vgg16-weights imagenet

The variants are compared on the validation set, on which they were also designed, so that the best
result is slightly optimistic. The test set is not used here: `train_autoencoder.py` evaluates the
autoencoder on it, once.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.autoencoder import figure
from benchmarks.autoencoder.features import feature_maps
from benchmarks.autoencoder.material import DEFAULT, NEXT_SEED, Row, make_material
from benchmarks.autoencoder.variants import variants
from benchmarks.config import CompareAutoencoders
from cxr_tf import console, metrics
from cxr_tf.anomaly import train_autoencoder
from cxr_tf.anomaly.resolved import default_epochs
from cxr_tf.config import TrainAutoencoder, check_numbers
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv, write_json
from cxr_tf.models import autoencoder
from cxr_tf.runs import Run, open_run, reserve_run

log = logging.getLogger(__name__)


# Smallest number of healthy and of sick validation patients, for five-fold cross-fitting.
FEWEST_PATIENTS = 5


def compare_autoencoders(settings: CompareAutoencoders) -> Run:
    """Train and score all variants, write the comparison, and return its run.

    Raises UserError for invalid settings or data, before anything is written.
    """
    reserve_run(settings.logs, "compare", settings.name, settings)
    check_numbers(settings, epochs=1)
    if "features" in settings.variants and settings.vgg16_weights == "none":
        raise UserError("--variants features needs --vgg16-weights: imagenet or a file")
    autoencoder.check_size("denoising", settings.image_size)
    # Many functions are traced, which TensorFlow mistakes for retracing in a loop.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    # First, so that missing weights fail before hours of training.
    features = feature_maps(settings)
    data = load_data(settings)
    train, val = data.split("train"), data.split("val")
    healthy = train.take(np.flatnonzero(train.labels == 0))
    resolved = dataclasses.replace(
        settings,
        epochs=settings.epochs or default_epochs(len(healthy.labels), settings.batch_size),
    )
    run = open_run(settings.logs, "compare", settings.name, settings, data.catalog, resolved)
    if run.finished:
        log.info("%s is already finished; nothing to do", run.directory)
        return run

    material = make_material(resolved, healthy, val)
    rows = Rows(run.directory, material.sick)
    for name, make in variants(material, features).items():
        if not settings.variants or name in (DEFAULT, *settings.variants):
            rows.add(name, make)
    tables = evaluate_rows(rows.all(), val, bootstrap_samples=settings.bootstrap_samples)
    _write(run, tables, val)
    rows.remove()
    log.info("\n%s\ncomparison: %s", table(tables, val), run.directory)
    return run


def load_data(settings: CompareAutoencoders) -> ImageDataset:
    """Return the checked data; raise UserError for data too small to train or compare."""
    names = {f.name for f in dataclasses.fields(TrainAutoencoder)} - {"name"}
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k in names}
    data = train_autoencoder.load_data(TrainAutoencoder(**shared))
    val = data.split("val")
    patients = np.array(val.catalog.patients)
    healthy, sick = (len(set(patients[val.labels == k])) for k in (0, 1))
    if min(healthy, sick) < FEWEST_PATIENTS:
        raise UserError(
            f"{data.catalog.source}: {healthy} healthy and {sick} sick patients in the validation "
            f"set; the comparison needs at least {FEWEST_PATIENTS} of each"
        )
    return data


class Rows:
    """The finished rows, which are stored in the run's `rows.json` until all are finished.

    The file contains {variant: {row: {"alone", "joined", "seconds"}}}.
    """

    def __init__(self, directory: Path, sick: np.ndarray) -> None:
        self._sick = sick
        self._file = directory / "rows.json"
        self._done: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            self._done = json.loads(self._file.read_text())

    def add(self, name: str, make: Callable[[], Iterator[tuple[str, Row]]]) -> None:
        """Compute the rows of a variant, unless they are already in the file."""
        if name in self._done:
            return
        self._done[name] = {}
        for row, scores in make():
            log.info("  %s: validation AUROC %s", row, self._areas(scores))
            self._done[name][row] = {
                "alone": None if scores.alone is None else scores.alone.tolist(),
                "joined": None if scores.joined is None else scores.joined.tolist(),
                "seconds": scores.seconds,
            }
        write_json(self._file, self._done)
        keras.backend.clear_session()

    def _areas(self, scores: Row) -> str:
        pairs = (("alone", scores.alone), ("joined", scores.joined))
        return ", ".join(
            f"{name} {metrics.roc_area(self._sick, values):.3f}"
            for name, values in pairs
            if values is not None
        )

    def all(self) -> dict[str, Row]:
        """Return all rows in order, and the mean of the two seeds if both were trained."""
        rows = {
            name: _row(record) for group in self._done.values() for name, record in group.items()
        }
        if NEXT_SEED not in rows:
            return rows
        first, second = rows[DEFAULT].joined, rows[NEXT_SEED].joined
        assert first is not None and second is not None
        return {**rows, "both seeds averaged": Row(None, (first + second) / 2)}

    def remove(self) -> None:
        """Delete the file once the run is finished."""
        self._file.unlink()


def _row(written: dict[str, Any]) -> Row:
    alone, joined = (
        None if written[k] is None else np.array(written[k]) for k in ("alone", "joined")
    )
    return Row(alone, joined, written["seconds"])


def evaluate_rows(
    rows: dict[str, Row], val: ImageDataset, *, bootstrap_samples: int
) -> dict[str, dict[str, Any]]:
    """Compute the AUROC of every row on the validation set, with intervals, for `metrics.json`.

    `alone` and `joined` are the AUROCs of the two scores, with intervals in `ci95`. `difference` is
    the AUROC of the joined score, or else of the score alone, minus that of the default's joined
    score on the same images.
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
            "ci95": metrics.intervals(areas, patients, bootstrap_samples=bootstrap_samples),
            "seconds": row.seconds,
        }
    return tables


def _areas(
    sick: np.ndarray, scores: dict[str, np.ndarray], default: np.ndarray, weights: np.ndarray | None
) -> dict[str, float]:
    areas = {name: metrics.roc_area(sick, own, weights) for name, own in scores.items()}
    best = areas.get("joined", areas.get("alone", float("nan")))
    return {**areas, "difference": best - metrics.roc_area(sick, default, weights)}


def table(tables: dict[str, dict[str, Any]], val: ImageDataset) -> str:
    """Format the comparison as a table for the terminal."""
    sick = int((val.labels == 1).sum())
    heading = f"AUROC on {len(val.labels) - sick} healthy and {sick} abnormal validation images"
    rows = []
    for name, scores in tables.items():
        alone, joined = (
            metrics.with_interval(scores, k) if k in scores else "" for k in ("alone", "joined")
        )
        low, high = scores["ci95"].get("difference", (float("nan"),) * 2)
        difference = f"{scores['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        seconds = f"{scores['seconds']:.0f}" if scores["seconds"] else ""
        rows.append([name, alone, joined, "" if name == DEFAULT else difference, seconds])
    header = [heading, "alone", "combined", "difference", "seconds"]
    return console.table(header, rows)


def _write(run: Run, tables: dict[str, dict[str, Any]], val: ImageDataset) -> None:
    writer = run.writer()
    run.write_figure("variants", figure.variants(tables, DEFAULT), writer)
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
                f"{t['seconds']:.0f}" if t["seconds"] else "",
            ]
            for name, t in tables.items()
        ],
    )
    run.write_metrics({"val": tables[DEFAULT], "variants": tables})
