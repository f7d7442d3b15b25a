"""Embeddings of a catalogue by a trained classifier: computed once, and stored in a file.

    classifier = open_classifier("logs/classifier/vgg16-binary")
    embeddings = embed(classifier, catalog, indexed, run, settings)

Memory. There is never more than one copy of the embeddings, float32 [N, D], in memory: they are
read from the file and changed in place.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.config import FitKnn
from cxr_tf.data import batches as data_batches
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import decoding
from cxr_tf.data.batches import STRESS_SEED
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user, write_arrays, write_atomically
from cxr_tf.models import weights
from cxr_tf.models.classifier import build_classifier, embedding_of
from cxr_tf.runs import Run, open_finished_run
from cxr_tf.serving import loading
from cxr_tf.serving.store import versions
from cxr_tf.serving.store.fingerprint import fingerprint
from cxr_tf.training.inference import compiled, infer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """An exported classifier, and the settings that it was trained with, if known."""

    served: loading.ServedModel
    fingerprint: str
    settings: dict[str, Any] | None

    @property
    def embedder(self) -> str:
        """An identifier of the embeddings: the fingerprint of the model, and the engine.

        The engine is part of it because the last digits of the embeddings depend on the engine.
        """
        engine = self.served.engine_for("embed")
        return self.fingerprint + ("" if engine == "tensorflow" else f"-{engine}")


@dataclass(frozen=True)
class Embeddings:
    """Embeddings in a file, and the smaller arrays that belong to them.

    The rows are those of `catalog`, in this order: train (first `indexed` rows without identical
    copies, then the copies), val, test. So every split is a slice, which needs no copy in memory.

    stressed: float32 [V, D], of the perturbed copy of the val images. probabilities: float32
    [V + T, C], the classifier's own predictions on val and test. labels: int64 [N].
    """

    file: Path
    catalog: data_catalog.Catalog
    labels: np.ndarray
    indexed: int
    stressed: np.ndarray
    probabilities: np.ndarray

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        return int(self.stressed.shape[1])

    def read(self) -> np.ndarray:
        """Read all embeddings, float32 [N, D], into a new array, which the caller may change."""
        with np.load(self.file, allow_pickle=False) as stored:
            return stored["embeddings"]

    def rows(self, split: str) -> slice:
        """Return the rows of a split."""
        rows = self.catalog.rows(split)
        return slice(int(rows[0]), int(rows[-1]) + 1)


def open_classifier(folder: str, engine: str = "tensorflow") -> Classifier:
    """Open a classifier from its run or SavedModel folder; raise UserError for other models."""
    settings = None
    if (expand_user(folder) / "config.json").exists():
        run = open_finished_run(folder, "classifier")
        settings = run.config["settings"]
        folder = str(versions.exported_by(run))
    served = loading.load_served(folder, engine=engine)
    if served.card.get("kind") != "classifier":
        raise UserError(
            f"{served.folder} is a model of kind {served.card['kind']}, not a classifier"
        )
    return Classifier(served, fingerprint(served.folder), settings)


def split_order(catalog: data_catalog.Catalog, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the rows ordered by split, and the number of training rows without identical copies.

    Copies come last within train and are not indexed: otherwise an image would vote twice and
    appear twice among the neighbours. Copies with different labels are all indexed, because it is
    not known which label is right.
    """
    train = catalog.rows("train")
    seen: set[tuple[str, int]] = set()
    first: list[int] = []
    copies: list[int] = []
    for row in train:
        key = (catalog.radiographs[row].digest, int(labels[row]))
        (copies if key in seen else first).append(int(row))
        seen.add(key)
    order = [*first, *copies, *catalog.rows("val"), *catalog.rows("test")]
    return np.array(order, np.int64), len(first)


def embed(
    classifier: Classifier,
    catalog: data_catalog.Catalog,
    indexed: int,
    run: Run,
    settings: FitKnn,
) -> Embeddings:
    """Embed a catalogue in split order, or reuse the embeddings of an earlier run.

    All KNN runs are searched. Embeddings are reused if the model's files and the image files are
    the same, byte for byte, and the images are in the same order and splits.
    """
    file = run.directory / "embeddings.npz"
    digests = np.array([r.digest for r in catalog.radiographs])
    splits = np.array([r.split for r in catalog.radiographs])
    labels = catalog.labels(classifier.served.card["task"], classifier.served.classes)
    earlier = find_stored(file, classifier.embedder, digests, splits)
    if earlier is not None:
        log.info("  embeddings: reused from %s", earlier)
        if earlier != file:
            write_atomically(file, lambda p: _link(earlier, p))
    else:
        started = time.perf_counter()
        values = embed_files(classifier.served, catalog.paths, settings.batch_size)
        log.info("  embeddings: %d x %d in %.0f s", *values.shape, time.perf_counter() - started)
        val = catalog.rows("val")
        held_out = catalog.take(np.concatenate([val, catalog.rows("test")])).paths
        probabilities, _ = loading.predict_files(
            classifier.served, held_out, batch_size=settings.batch_size
        )
        stressed = embed_stressed(classifier.served, catalog.take(val).paths, settings.batch_size)
        write_arrays(
            file,
            {
                "embeddings": values,
                "stressed": stressed,
                "probabilities": probabilities,
                "labels": labels,
                "splits": splits,
                "paths": np.array(catalog.paths),
                "patients": np.array(catalog.patients),
                "digests": digests,
                "model": np.array(classifier.embedder),
                "data": np.array(catalog.fingerprint()),
            },
        )
        del values
    with np.load(file, allow_pickle=False) as stored:
        return Embeddings(
            file=file,
            catalog=catalog,
            labels=labels,
            indexed=indexed,
            stressed=stored["stressed"],
            probabilities=stored["probabilities"],
        )


def find_stored(file: Path, model: str, digests: np.ndarray, splits: np.ndarray) -> Path | None:
    """Return a file with this model's embeddings of these images, from any run, or None.

    file: where this run stores its embeddings; other runs use the same file name.
    """
    for candidate in [file, *sorted(file.parent.parent.glob(f"*/{file.name}"))]:
        if not candidate.exists():
            continue
        with np.load(candidate, allow_pickle=False) as stored:
            if (
                str(stored["model"]) == model
                and np.array_equal(stored["digests"], digests)
                and np.array_equal(stored["splits"], splits)
            ):
                return candidate
    return None


def embed_files(served: loading.ServedModel, paths: Sequence[str], batch_size: int) -> np.ndarray:
    """Embed image files with the SavedModel's signature `embed`: float32 [N, D]."""
    predict = served.file_predictor("embed")
    values = np.empty((0, 0), np.float32)
    for rows in batches(len(paths), batch_size):
        embedding = predict(paths[rows])["embedding"]
        if rows.start == 0:
            values = np.empty((len(paths), int(embedding.shape[1])), np.float32)
        values[rows] = embedding
    return values


def embed_stressed(
    served: loading.ServedModel, paths: Sequence[str], batch_size: int
) -> np.ndarray:
    """Embed images with the augmentation of the perturbed validation copy: float32 [N, D]."""
    predict = served.predictor("embed")
    images, _ = decoding.load_images(paths, served.card["image_size"])
    parts = []
    for batch in data_batches.evaluation_batches(
        images, batch_size=batch_size, stress_seed=STRESS_SEED
    ):
        gray = tf.saturate_cast(tf.round(batch), tf.uint8)
        # A PNG of the model's own size passes through `embed` unchanged.
        parts.append(predict([tf.io.encode_png(image).numpy() for image in gray])["embedding"])
    return np.concatenate(parts)


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` rows; a single last row joins the previous slice.

    For a batch of one row, some kernels sum in a different order, so that the last bits differ.
    """
    start = 0
    while start < count:
        stop = min(start + size, count)
        if count - stop == 1 and size > 1:
            stop = count
        yield slice(start, stop)
        start = stop


def embed_before(
    classifier: Classifier, paths: Sequence[str], batch_size: int
) -> np.ndarray | None:
    """Embed images with the weights that training started from: float32 [N, D].

    Returns None if those weights are not known (a SavedModel without its run) or cannot be loaded,
    or if the backbone was not trained, so that the embeddings are the same before and after.
    """
    known = classifier.settings
    if known is None or known["epochs"] == 0 or known["trainable_blocks"] == 0:
        return None
    # Random weights are drawn again from the same seed.
    keras.utils.set_random_seed(known["seed"])
    model = build_classifier(
        known["backbone"],
        classes=len(classifier.served.classes),
        image_size=known["image_size"],
    )
    try:
        weights.load_weights(model, known["backbone"], known["weights"])
    except UserError as error:
        log.info("  embeddings before training are not shown: %s", error)
        return None
    images, _ = decoding.load_images(paths, known["image_size"])
    shown = data_batches.evaluation_batches(images, batch_size=batch_size)
    return infer(compiled(embedding_of(model)), shown)


def stored_before(
    classifier: Classifier, shown: data_catalog.Catalog, run: Run, settings: FitKnn
) -> np.ndarray | None:
    """Return the result of `embed_before`, which is stored in `embeddings-before.npz`."""
    file = run.directory / "embeddings-before.npz"
    digests = np.array([r.digest for r in shown.radiographs])
    splits = np.array([r.split for r in shown.radiographs])
    earlier = find_stored(file, classifier.fingerprint, digests, splits)
    if earlier is not None:
        with np.load(earlier, allow_pickle=False) as stored:
            return stored["embeddings"]
    values = embed_before(classifier, shown.paths, settings.batch_size)
    if values is not None:
        write_arrays(
            file,
            {
                "embeddings": values,
                "digests": digests,
                "splits": splits,
                "model": np.array(classifier.fingerprint),
            },
        )
    return values


def _link(source: Path, target: Path) -> None:
    """Hard-link a file; copy it if the file system has no links.

    A link is safe because these files are replaced, and never changed in place.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
