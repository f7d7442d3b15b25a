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
        """Contents of image files, as the signatures take them."""
        return [Path(p).read_bytes() for p in paths]


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

    archive = keras.export.ExportArchive()
    archive.track(model)
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
