"""The classifier and the radiographs to explain."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.config import Explain
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, dataset, decoding, loading, splits
from cxr_tf.data.image_files import find_images
from cxr_tf.data.reading import conventions
from cxr_tf.errors import UserError
from cxr_tf.files import digest_files, expand_user
from cxr_tf.models import weights
from cxr_tf.models.layer_graph import in_float32
from cxr_tf.runs import open_finished_run
from cxr_tf.scoring import selection
from cxr_tf.serving.prediction.client import read_image
from cxr_tf.serving.store import model_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier in float32, with the settings and results of its run."""

    name: str
    model: keras.Model
    classes: tuple[str, ...]
    task: str
    threshold: float
    settings: dict[str, Any]
    data_fingerprint: str

    @property
    def size(self) -> int:
        """The side of its input images, in pixels."""
        return int(self.model.input_shape[1])


@dataclass(frozen=True)
class Radiographs:
    """The radiographs to explain.

    images: uint8 [N, S, S, 1]; labels: int64 [N], -1 if unknown; masks: lesion masks, bool
    [N, S, S], for phantoms only.
    """

    catalog: data_catalog.Catalog
    images: np.ndarray
    labels: np.ndarray
    findings: tuple[str, ...]
    masks: np.ndarray | None

    @property
    def pixels(self) -> np.ndarray:
        """The images as the model takes them: float32 [N, S, S, 3] in 0..255."""
        return np.repeat(self.images, 3, axis=3).astype(np.float32)


def open_classifier(folder: str) -> Classifier:
    """Load a classifier from its run's folder in float32; raise UserError if there is none."""
    directory = expand_user(folder)
    is_saved_model = (directory / "saved_model.pb").exists() or model_config.model_versions(
        directory
    )
    run = open_finished_run(
        folder,
        "classifier",
        hint="it is a SavedModel, which predict.py --signature occlusion explains"
        if is_saved_model
        else "",
    )
    path = run.directory / "model.keras"
    if not path.exists():
        raise UserError(f"{folder} lacks model.keras: train the classifier again")
    model = weights.load_keras(path)
    facts = run.metrics["model"]
    return Classifier(
        name=run.directory.resolve().name,
        model=in_float32(model),
        classes=tuple(facts["classes"]),
        task=facts["task"],
        threshold=float(facts["threshold"]),
        settings=run.config["settings"],
        data_fingerprint=run.config["data_fingerprint"],
    )


def load_radiographs(settings: Explain, classifier: Classifier) -> Radiographs:
    """Read the radiographs to explain; raise UserError if there are none or some are unreadable."""
    if settings.images:
        catalog = catalog_of_images(find_images(settings.images))
        labels = np.full(len(catalog), -1)
    else:
        seed = classifier.settings.get("seed", 0)
        catalog = loading.open_catalog(settings.data, resplit=False, task=classifier.task)
        training = {
            "seed": seed,
            "data_fingerprint": classifier.data_fingerprint,
            "image_size": classifier.size,
        }
        trained_on = selection.with_training_splits(
            catalog, training, skip=settings.skip_unreadable
        )
        catalog = splits.resolve_splits(catalog, seed) if trained_on is None else trained_on
        log.info(checks.describe(catalog))
        if trained_on is None:
            log.info("  note: %s", selection.OTHER_DATA)
        if settings.split != "all":
            catalog = catalog.take(catalog.rows(settings.split))
            if not len(catalog):
                raise UserError(
                    f"{settings.data} has no {settings.split} split: choose another --split"
                )
        labels = catalog.labels(classifier.task, classifier.classes)
        rows = draw_rows(labels, [r.finding for r in catalog.radiographs], settings)
        catalog, labels = catalog.take(rows), labels[rows]
    images, unreadable = decode_files(catalog.paths, classifier.size)
    keep = np.setdiff1d(np.arange(len(catalog)), list(unreadable))
    catalog, images = dataset.drop_unreadable(
        catalog, images, unreadable, skip=settings.skip_unreadable
    )
    return Radiographs(
        catalog,
        images,
        labels[keep],
        tuple(r.finding for r in catalog.radiographs),
        dataset.lesion_masks(catalog, classifier.size),
    )


def decode_files(paths: list[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode image files like `decoding.load_images`, but also accept DICOM files."""
    from cxr_tf.data.sources import dicom

    images, unreadable = decoding.load_images(paths, size)
    for row in list(unreadable):
        if dicom.is_dicom(Path(paths[row])):
            try:
                encoded = tf.constant(read_image(paths[row]))
            except OSError as error:
                unreadable[row] = error.strerror or "cannot be read"
                continue
            except UserError as error:
                unreadable[row] = str(error).removeprefix(f"{paths[row]}: ")
                continue
            images[row] = decoding.decode_radiograph(encoded, size)
            del unreadable[row]
    return images, unreadable


def catalog_of_images(paths: list[str]) -> data_catalog.Catalog:
    """Return a catalogue of unlabelled files."""
    rows = []
    for path in paths:
        patient = conventions.patient_of(Path(path), Path(path).parent)
        rows.append(data_catalog.Radiograph(path, "", patient, "", digest_files(path)))
    return data_catalog.Catalog("images", tuple(rows), ())


def draw_rows(labels: np.ndarray, findings: Sequence[str], settings: Explain) -> np.ndarray:
    """Draw the rows to explain, sorted; balanced over classes, and over findings in a class."""
    if not settings.count or settings.count >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(settings.seed)
    # Classes take turns, and within a class its findings; within a finding the order is random.
    by_class: dict[int, list[list[int]]] = {}
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        finding = np.array(findings)[rows]
        by_class[label] = [rng.permutation(rows[finding == f]).tolist() for f in np.unique(finding)]
    drawn: list[int] = []
    turn = 0
    while len(drawn) < settings.count:
        for by_finding in by_class.values():
            remaining = [rows for rows in by_finding if rows]
            if remaining and len(drawn) < settings.count:
                drawn.append(remaining[turn % len(remaining)].pop())
        turn += 1
    return np.array(sorted(drawn), np.int64)
