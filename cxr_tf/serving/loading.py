"""Load an exported model and call its signatures."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import legacy
from cxr_tf.errors import UserError, first_line
from cxr_tf.files import expand_user
from cxr_tf.serving.prediction.batch_prediction import concatenated
from cxr_tf.serving.prediction.client import BadImages, PredictFn, as_text, bad_images, read_image
from cxr_tf.serving.runtimes import openvino_engine
from cxr_tf.serving.store import cards, model_config, versions, warm_up

log = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ServedModel:
    """An exported model in memory, with its model card.

    engine: the runtime of the signatures: tensorflow, openvino, or auto (OpenVINO, but TensorFlow
    for signatures that OpenVINO cannot run). precision: the precision of OpenVINO: float32,
    bfloat16 or int8.
    """

    folder: Path
    card: dict[str, Any]
    loaded: Any
    engine: str = "tensorflow"
    precision: str = "float32"
    _calls: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def signature(self, name: str) -> Callable[..., dict[str, tf.Tensor]]:
        """Return the function of a signature, which takes and returns named tensors."""
        known = list(self.loaded.signatures)
        if name not in known:
            raise UserError(f"{self.folder} has no signature '{name}'; it has {', '.join(known)}")
        return self.loaded.signatures[name]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of `probabilities`."""
        return tuple(self.card["classes"])

    def training_digests(self) -> set[str]:
        """Return the digests (`Radiograph.digest`) of the training and validation files.

        The set is empty if the export has no digests.
        """
        file = self.folder / versions.TRAINING_DIGESTS
        if not file.exists():
            file = file.with_name(legacy.TRAINING_DIGESTS)
        return set(file.read_text().split()) if file.exists() else set()

    def decode(self, paths: list[str]) -> list[bytes]:
        """Return the contents of image files for the signatures; DICOM is converted to PNG."""
        return [read_image(p) for p in paths]

    def predictor(self, signature: str) -> PredictFn:
        """Return a signature as a `PredictFn`, a function of image files, like `client.connect`.

        Raises UserError for a signature that does not take image files, and, if the engine is
        `openvino`, for one that OpenVINO cannot run.
        """
        call: Any = self.signature(signature)
        inputs = call.structured_input_signature[1]
        if [spec.dtype for spec in inputs.values()] != [tf.string]:
            raise UserError(
                f"signature '{signature}' does not take image files (inputs: {', '.join(inputs)}): "
                "choose another"
            )
        call = self._call(signature)

        def predict(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
            try:
                outputs = call(**{next(iter(inputs)): tf.constant(list(contents), tf.string)})
            except tf.errors.InvalidArgumentError as error:
                if reasons := bad_images(str(error), contents):
                    raise BadImages(reasons) from None
                raise
            return {name: as_text(values.numpy()) for name, values in outputs.items()}

        return predict

    def file_predictor(self, signature: str) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
        """Return a signature as a function of file paths; UserError names the first bad file."""
        predict = self.predictor(signature)

        def predict_paths(paths: Sequence[str]) -> dict[str, np.ndarray]:
            try:
                return predict(self.decode(list(paths)))
            except BadImages as bad:
                row, reason = next(iter(bad.reasons.items()))
                raise UserError(f"{paths[row]}: {reason}") from None

        return predict_paths

    def predict(
        self, paths: Paths, *, signature: str = "serving_default", batch_size: int = 32
    ) -> dict[str, np.ndarray]:
        """Return all outputs of a signature for image files, in the order of their paths.

        paths: one JPEG, PNG or DICOM file, or N of them. A classifier returns `probabilities`
        float32 [N, C], `classes` [N, C] and `label` [N]; an autoencoder returns `score`,
        `threshold`, `is_anomaly` and `percentile` [N]; nearest neighbours return the outputs of a
        classifier and `neighbor_paths` [N, k].

        Raises UserError for a file that cannot be read, and for an unknown signature.
        """
        predict = self.file_predictor(signature)
        names = [str(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        if not names:
            raise UserError("no image given")
        return concatenated(predict, names, batch_size)

    def embed(self, paths: Paths) -> np.ndarray:
        """Return the embeddings of image files, float32 [N, D]; classifiers only."""
        return self.predict(paths, signature="embed")["embedding"]

    def heatmap(self, paths: Paths) -> np.ndarray:
        """Return occlusion heatmaps of the predicted class, float32 [N, S, S]; classifiers only."""
        return self.predict(paths, signature="occlusion", batch_size=4)["heatmap"]

    def anomaly_map(self, paths: Paths) -> np.ndarray:
        """Return anomaly maps, float32 [N, S, S]; autoencoders only."""
        return self.predict(paths, signature="explain", batch_size=4)["anomaly_map"]

    def engine_for(self, signature: str) -> str:
        """Return the engine that runs a signature: tensorflow or openvino."""
        return "tensorflow" if self._call(signature) is self.signature(signature) else "openvino"

    def _call(self, signature: str) -> Any:
        """Return a signature as a function on its engine; OpenVINO compiles each signature once."""
        if signature not in self._calls:
            call = self.signature(signature)
            self._calls[signature] = (
                call if self.engine == "tensorflow" else self._on_openvino(signature, call)
            )
        return self._calls[signature]

    def _on_openvino(self, signature: str, call: Any) -> Any:
        if self.precision == "int8" and signature == "embed":
            # The loss of accuracy by int8 is measured for predictions, but not for embeddings.
            raise UserError("--engine-precision int8 is for predictions, not for embeddings")
        try:
            return openvino_engine.on_openvino(
                call, example=warm_up.phantom_file(), precision=self.precision
            )
        except Exception as error:  # TensorFlow can run the signature in any case
            reason = first_line(error)
            if self.engine == "openvino":
                raise UserError(
                    f"OpenVINO cannot run '{signature}' of {self.folder} ({reason}): use --engine "
                    "tensorflow"
                ) from error
            log.warning(
                "signature '%s' runs on TensorFlow instead of OpenVINO: %s", signature, reason
            )
            return call


def load_served(
    model: str, *, engine: str = "tensorflow", precision: str = "float32"
) -> ServedModel:
    """Load an exported model from its folder (the newest version) or from a version's folder.

    engine, precision: see `openvino_engine.takes_openvino`. Raises UserError if there is no such
    model or engine, and for a precision other than float32 unless the model is a classifier: the
    loss of AUROC is measured for classifiers only.
    """
    if not openvino_engine.takes_openvino(engine, precision):
        engine = "tensorflow"
    folder = find_version(model)
    card = cards.read_card(folder)
    cards.check_files(folder, card)
    if precision != "float32" and card["kind"] != "classifier":
        raise UserError(f"--engine-precision {precision} is for classifiers only: leave it out")
    if engine == "auto" and card.get("backbone") in openvino_engine.SLOWER_ON_OPENVINO:
        engine = "tensorflow"
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # a damaged graph raises errors of any kind
        reason = first_line(error)
        raise UserError(f"{folder} cannot be loaded: {reason}") from error
    return ServedModel(folder, card, loaded, engine, precision)


def find_version(model: str) -> Path:
    """Return the version folder for a path: the path itself, or the newest version under it.

    Raises UserError if there is no model of this package.
    """
    folder = expand_user(model)
    if not folder.is_dir():
        raise UserError(f"no such model: {model} (expected saved_models/<name> or .../<version>)")
    if not (folder / "saved_model.pb").exists():
        found = model_config.model_versions(folder)
        if not found:
            raise UserError(f"{model} contains neither a SavedModel nor versions of one")
        folder = folder / str(found[-1])
    if not (folder / cards.CARD).exists():
        raise UserError(f"{folder} is not a SavedModel of cxr_tf: it has no {cards.CARD}")
    return folder


def read_card(model: str) -> dict[str, Any]:
    """Return the model card of an exported model; raise UserError if there is none."""
    return cards.read_card(find_version(model))


def predict_files(
    served: ServedModel, paths: list[str], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 [N, C] and predicted class indices int64 [N] of image files.

    Raises UserError if a file cannot be decoded, and names the file.
    """
    outputs = concatenated(served.file_predictor("serving_default"), paths, batch_size)
    labels = [served.classes.index(label) for label in outputs["label"]]
    return outputs["probabilities"], np.array(labels, np.int64)
