"""SavedModels for TF Serving: signatures, versions that appear whole, and how to load them back.

    folder = export_classifier(model, Path("saved_models/vgg16-binary"), classes=..., ...)
    served = load_served(folder)
    served.signature("serving_default")(image_bytes=tf.constant([...]))["probabilities"]

Everything that was chosen (size, calibration, threshold, class names) is inside the graph: a client
sends the bytes of the file and needs nothing else.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.pipeline import decode_radiograph, to_rgb
from cxr_tf.errors import UserError
from cxr_tf.models.classifier import embedding_of
from cxr_tf.runs import write_json

CARD = Path("assets.extra") / "model_card.json"


@dataclass(frozen=True)
class ServedModel:
    """A SavedModel of ours in memory, with what its card says."""

    folder: Path
    card: dict[str, Any]
    loaded: Any

    def signature(self, name: str) -> Callable[..., dict[str, tf.Tensor]]:
        """The function behind a signature; takes and returns named tensors."""
        known = list(self.loaded.signatures)
        if name not in known:
            raise UserError(f"{self.folder} has no signature '{name}'; it has {', '.join(known)}")
        return self.loaded.signatures[name]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `probabilities`."""
        return tuple(self.card["classes"])

    def decode(self, paths: list[str]) -> list[bytes]:
        """Contents of image files, as the signatures take them; DICOM becomes PNG on the way."""
        from cxr_tf.data import dicom

        return [
            dicom.png_bytes(Path(p)) if dicom.is_dicom(Path(p)) else Path(p).read_bytes()
            for p in paths
        ]


def export_classifier(
    model: keras.Model,
    base: Path,
    *,
    classes: tuple[str, ...],
    threshold: float,
    card: dict[str, Any],
) -> Path:
    """Writes a calibrated float32 classifier as the next version under `base`; returns its folder.

    Signatures (N images; C classes; S the model's size; D the embedding's width):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> probabilities float32 [N, C],
      classes string [N, C], label string [N];
    - `tensor`: images float32 [N, S, S, 3] in 0..255 -> the same;
    - `embed`: image_bytes -> embedding float32 [N, D].

    `threshold` is the probability of the second class from which on it is the label (two classes);
    with more classes the label is the most probable one.
    """
    size = int(model.input_shape[1])
    names = tf.constant(list(classes))
    embedding = embedding_of(model)

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        gray = tf.map_fn(
            lambda encoded: decode_radiograph(encoded, size),
            image_bytes,
            fn_output_signature=tf.uint8,
        )
        return to_rgb(tf.ensure_shape(gray, [None, size, size, 1]))

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = model(images, training=False)
        predicted = decide(probabilities, threshold)
        return {
            "probabilities": probabilities,
            "classes": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
            "label": tf.gather(names, predicted),
        }

    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")

    # Endpoints track the variables that they use; `track` would store each a second time.
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", lambda x: classify(decode(x)), [image_bytes])
    archive.add_endpoint("tensor", classify, [images])
    archive.add_endpoint(
        "embed", lambda x: {"embedding": embedding(decode(x), training=False)}, [image_bytes]
    )
    return write_version(base, lambda folder: archive.write_out(folder, verbose=False), card=card)


def decide(probabilities: tf.Tensor, threshold: float) -> tf.Tensor:
    """Class index of each row: the second of two from `threshold` on, else the most probable."""
    if probabilities.shape[-1] == 2:
        return tf.cast(probabilities[:, 1] >= threshold, tf.int64)
    return tf.argmax(probabilities, axis=-1)


def write_version(base: Path, write: Callable[[str], Any], *, card: dict[str, Any]) -> Path:
    """Writes the next version `<base>/<n>/`, which appears whole or not at all.

    `write` fills the folder it is given, whose name TF Serving does not take for a version. A
    version that stands is never changed. What a killed export left is cleared away first.
    """
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(".writing-*"):
        shutil.rmtree(left)
    version = max(versions(base), default=0) + 1
    beside = base / f".writing-{version}"
    try:
        write(str(beside))
        (beside / CARD).parent.mkdir(exist_ok=True)
        write_json(beside / CARD, {**card, "name": base.name, "version": version})
        target = base / str(version)
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if not any(base.iterdir()):
            base.rmdir()
        raise
    return target


def versions(base: Path) -> list[int]:
    """Versions under a model's folder, ascending."""
    if not base.is_dir():
        return []
    return sorted(int(d.name) for d in base.iterdir() if d.is_dir() and d.name.isdigit())


def load_served(model: str) -> ServedModel:
    """Loads a SavedModel of ours from its folder (newest version) or a version's folder.

    Raises UserError where there is none.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"no such model: {model} (expected saved_models/<name> or .../<version>)")
    if not (folder / "saved_model.pb").exists():
        found = versions(folder)
        if not found:
            raise UserError(f"{model} holds no SavedModel and no versions of one")
        folder = folder / str(found[-1])
    if not (folder / CARD).exists():
        raise UserError(f"{folder} is not a SavedModel of cxr_tf: it has no {CARD}")
    card = json.loads((folder / CARD).read_text())
    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return ServedModel(folder=folder, card=card, loaded=loaded)


def predict_files(
    served: ServedModel, paths: list[str], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, C] and predicted class index int64 [N] of image files.

    Raises UserError that names the file where one cannot be decoded.
    """
    classify = served.signature("serving_default")
    probabilities, labels = [], []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        try:
            out = classify(image_bytes=tf.constant(served.decode(batch)))
        except tf.errors.OpError:
            from cxr_tf.data.pipeline import load_images

            _, unreadable = load_images(batch, 16)
            if not unreadable:
                raise
            row, reason = next(iter(unreadable.items()))
            raise UserError(f"{batch[row]}: {reason}") from None
        probabilities.append(out["probabilities"].numpy())
        labels += [served.classes.index(x.decode()) for x in out["label"].numpy()]
    return np.concatenate(probabilities), np.array(labels, np.int64)


def export_knn(
    classifier: ServedModel,
    base: Path,
    *,
    pipeline: Any,
    index: np.ndarray,
    index_labels: np.ndarray,
    index_paths: list[str],
    novelty_limit: float,
    card: dict[str, Any],
    write_beside: Callable[[Path], Any],
) -> Path:
    """Writes a nearest-neighbours model as the next version under `base`; returns its folder.

    Signature `serving_default` (N images, C classes, k neighbours): image_bytes string [N] ->
    probabilities float32 [N, C] (shares of the vote), classes string [N, C], label string [N],
    neighbor_paths and neighbor_labels string [N, k], neighbor_distances float32 [N, k] ascending,
    novelty float32 [N] (distance to the k-th neighbour over `novelty_limit`; above 1 the image is
    unlike those that the index was made of).

    `pipeline` is the fitted scikit-learn one, with steps among `standardise`, `project`,
    `unit_length`, and last `knn`; index: float32 [M, E], its training rows after those steps;
    index_labels: int [M]. `write_beside` puts further files into the version's folder, and may
    look at the finished SavedModel there and raise.
    """
    steps = dict(pipeline.steps)
    knn = steps["knn"]
    k = int(knn.n_neighbors)
    names = tf.constant(list(classifier.classes))
    module = tf.Module()
    module.classifier = classifier.loaded
    module.index = tf.Variable(index, trainable=False, name="index")
    module.index_labels = tf.Variable(index_labels.astype(np.int64), trainable=False)
    paths = tf.constant(index_paths)

    def transform(embedding: tf.Tensor) -> tf.Tensor:
        x = tf.cast(embedding, tf.float64)
        if "standardise" in steps:
            x = (x - steps["standardise"].mean_) / steps["standardise"].scale_
        if "project" in steps:
            mean = steps["project"].mean_.astype(np.float64)
            x = tf.matmul(x - mean, steps["project"].components_.T.astype(np.float64))
        if "unit_length" in steps:
            x = tf.math.divide_no_nan(x, tf.norm(x, axis=1, keepdims=True))
        # The index is float32, and so is a query that scikit-learn compares with it.
        return tf.cast(x, tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        embedding = module.classifier.signatures["embed"](image_bytes=image_bytes)["embedding"]
        distances, rows = nearest_rows(transform(embedding), module.index, k)
        labels = tf.gather(module.index_labels, rows)
        weights = tf.ones_like(distances)
        if knn.weights == "distance":
            # As scikit-learn: where a neighbour is at no distance, only such neighbours vote.
            identical = distances == 0
            weights = tf.where(
                tf.reduce_any(identical, axis=1, keepdims=True),
                tf.cast(identical, distances.dtype),
                1 / distances,
            )
        votes = tf.one_hot(labels, len(classifier.classes), dtype=weights.dtype)
        votes = tf.reduce_sum(votes * weights[..., None], axis=1)
        shares = votes / tf.reduce_sum(votes, axis=1, keepdims=True)
        return {
            "probabilities": tf.cast(shares, tf.float32),
            "classes": tf.tile(names[None], [tf.shape(shares)[0], 1]),
            "label": tf.gather(names, tf.argmax(votes, axis=1)),
            "neighbor_paths": tf.gather(paths, rows),
            "neighbor_labels": tf.gather(names, labels),
            "neighbor_distances": tf.cast(distances, tf.float32),
            "novelty": tf.cast(distances[:, -1] / novelty_limit, tf.float32),
        }

    def write(folder: str) -> None:
        tf.saved_model.save(module, folder, signatures={"serving_default": classify})
        write_beside(Path(folder))

    return write_version(base, write, card=card)


def nearest_rows(
    queries: tf.Tensor, index: tf.Variable, k: int, *, block: int = 8192
) -> tuple[tf.Tensor, tf.Tensor]:
    """Exact Euclidean search: distances float64 [N, k] ascending and rows int64 [N, k].

    queries: float32 [N, E]; index: float32 [M, E], k <= M. The index is gone through in blocks,
    so that memory holds N x block distances whatever M is. In float64, as scikit-learn does, since
    |q|^2 - 2qx + |x|^2 loses in float32 the very digits that order near neighbours.
    """
    queries = tf.cast(queries, tf.float64)
    size = int(index.shape[0])
    squares = tf.reduce_sum(queries**2, axis=1, keepdims=True)

    def step(
        start: tf.Tensor, nearest: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        part = tf.cast(index[start : start + block], tf.float64)
        squared = squares - 2 * tf.matmul(queries, part, transpose_b=True)
        squared += tf.reduce_sum(part**2, axis=1)[None]
        numbers = tf.range(tf.shape(part)[0], dtype=tf.int64) + tf.cast(start, tf.int64)
        candidates = tf.concat([nearest, squared], axis=1)
        of_candidates = tf.concat([rows, tf.tile(numbers[None], [tf.shape(queries)[0], 1])], axis=1)
        best, where = tf.math.top_k(-candidates, k)
        return start + block, -best, tf.gather(of_candidates, where, batch_dims=1)

    count = tf.shape(queries)[0]
    _, nearest, rows = tf.while_loop(
        lambda start, *_: start < size,
        step,
        (
            tf.constant(0),
            tf.fill([count, k], tf.constant(np.inf, tf.float64)),
            tf.zeros([count, k], tf.int64),
        ),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, k]),
            tf.TensorShape([None, k]),
        ),
    )
    return tf.sqrt(tf.maximum(nearest, 0.0)), rows
