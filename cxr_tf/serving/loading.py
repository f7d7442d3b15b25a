"""Load an exported model and call its signatures."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import legacy
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user
from cxr_tf.serving import cards, model_config, versions, warm_up
from cxr_tf.serving.client import BadImages, PredictFn, as_text, bad_images, read_image
from cxr_tf.serving.runtimes import openvino_engine

log = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ServedModel:
    """A SavedModel of ours in memory, with what its card says.

    engine: what `ask` runs it on: tensorflow, openvino, or auto, which falls back to TensorFlow.
    precision: of OpenVINO, float32, bfloat16 or int8.
    """

    folder: Path
    card: dict[str, Any]
    loaded: Any
    engine: str = "tensorflow"
    precision: str = "float32"
    _calls: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def training_digests(self) -> set[str]:
        """Digests (`Radiograph.digest`) of the files it was trained on or chosen by.

        Empty for an export that does not say.
        """
        file = self.folder / versions.TRAINING_DIGESTS
        if not file.exists():
            file = file.with_name(legacy.TRAINING_DIGESTS)
        return set(file.read_text().split()) if file.exists() else set()

    def decode(self, paths: list[str]) -> list[bytes]:
        """Contents of image files, as the signatures take them; DICOM becomes PNG on the way."""
        return [read_image(p) for p in paths]

    def predictor(self, signature: str) -> PredictFn:
        """Return a signature that takes image files, called as one of a server.

        Raises UserError for one that does not, or that OpenVINO cannot run although it must.
        """
        call: Any = self.signature(signature)
        inputs = call.structured_input_signature[1]
        if [spec.dtype for spec in inputs.values()] != [tf.string]:
            raise UserError(
                f"signature '{signature}' does not take image files, but {list(inputs)}"
            )
        call = self._call(signature)

        def asked(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
            try:
                outputs = call(**{next(iter(inputs)): tf.constant(list(contents), tf.string)})
            except tf.errors.InvalidArgumentError as error:
                if reasons := bad_images(str(error), contents):
                    raise BadImages(reasons) from None
                raise
            return {name: as_text(values.numpy()) for name, values in outputs.items()}

        return asked

    def file_predictor(self, signature: str) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
        """As `predictor`, of file paths; UserError names the first that is bad."""
        ask = self.predictor(signature)

        def asked(paths: Sequence[str]) -> dict[str, np.ndarray]:
            try:
                return ask(self.decode(list(paths)))
            except BadImages as bad:
                row, reason = next(iter(bad.reasons.items()))
                raise UserError(f"{paths[row]}: {reason}") from None

        return asked

    def predict(
        self, paths: Paths, *, signature: str = "serving_default", batch_size: int = 32
    ) -> dict[str, np.ndarray]:
        """Predict image files: every output of the signature, in the order of the paths.

        paths: one JPEG, PNG or DICOM file, or N of them. A classifier returns `probabilities`
        float32 [N, C], `classes` [N, C] and `label` [N]; an autoencoder `score`, `threshold`,
        `is_anomaly` and `percentile` [N]; nearest neighbours also their `neighbor_paths` [N, k].

        Raises UserError for a file that cannot be read, and for a signature the model lacks.
        """
        predict = self.file_predictor(signature)
        names = [str(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        if not names:
            raise UserError("no image to predict")
        parts = [predict(names[i : i + batch_size]) for i in range(0, len(names), batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def embed(self, paths: Paths) -> np.ndarray:
        """Return the embedding of image files, float32 [N, D]; classifiers only."""
        return self.predict(paths, signature="embed")["embedding"]

    def heatmap(self, paths: Paths) -> np.ndarray:
        """Return occlusion heatmaps of the predicted class, float32 [N, S, S]; classifiers only."""
        return self.predict(paths, signature="occlusion", batch_size=4)["heatmap"]

    def anomaly_map(self, paths: Paths) -> np.ndarray:
        """Return anomaly maps, float32 [N, S, S]; autoencoders only."""
        return self.predict(paths, signature="explain", batch_size=4)["anomaly_map"]

    def engine_for(self, signature: str) -> str:
        """What answers when a signature is asked: tensorflow or openvino."""
        return "tensorflow" if self._call(signature) is self.signature(signature) else "openvino"

    def _call(self, signature: str) -> Any:
        """A signature on its engine; OpenVINO compiles each once."""
        if signature not in self._calls:
            call = self.signature(signature)
            self._calls[signature] = (
                call if self.engine == "tensorflow" else self._on_openvino(signature, call)
            )
        return self._calls[signature]

    def _on_openvino(self, signature: str, call: Any) -> Any:
        if self.precision == "int8" and signature == "embed":
            # Decisions bear 8 bits; a direction in 512 numbers does not, and nothing measures it.
            raise UserError("--engine-precision int8 is for predictions, not for embeddings")
        try:
            return openvino_engine.on_openvino(
                call, example=warm_up.phantom_file(), precision=self.precision
            )
        except Exception as error:  # whatever it is, TensorFlow can do the work
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.engine == "openvino":
                raise UserError(
                    f"OpenVINO cannot run '{signature}' of {self.folder} ({reason}): take --engine "
                    "tensorflow"
                ) from error
            log.warning("'%s' runs on TensorFlow, not OpenVINO: %s", signature, reason)
            return call


def load_served(
    model: str, *, engine: str = "tensorflow", precision: str = "float32"
) -> ServedModel:
    """Loads a SavedModel of ours from its folder (newest version) or a version's folder.

    engine, precision: see `engine.takes_openvino`. Raises UserError where there is no model, not
    that engine, and for another precision than float32 where the model is no classifier: what that
    costs is measured of classifiers alone.
    """
    if not openvino_engine.takes_openvino(engine, precision):
        engine = "tensorflow"
    folder = expand_user(model)
    if not folder.is_dir():
        raise UserError(f"no such model: {model} (expected saved_models/<name> or .../<version>)")
    if not (folder / "saved_model.pb").exists():
        found = model_config.model_versions(folder)
        if not found:
            raise UserError(f"{model} holds no SavedModel and no versions of one")
        folder = folder / str(found[-1])
    if not (folder / cards.CARD).exists():
        raise UserError(f"{folder} is not a SavedModel of cxr_tf: it has no {cards.CARD}")
    card = cards.read_card(folder)
    cards.check_files(folder, card)
    if precision != "float32" and card["kind"] != "classifier":
        raise UserError(f"--engine-precision {precision} is for classifiers: leave it out")
    if engine == "auto" and card.get("backbone") in openvino_engine.SLOWER_ON_OPENVINO:
        engine = "tensorflow"
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # what a damaged graph raises is of any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} cannot be loaded: {reason}") from error
    return ServedModel(folder, card, loaded, engine, precision)


def predict_files(
    served: ServedModel, paths: list[str], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, C] and predicted class index int64 [N] of image files.

    Raises UserError that names the file where one cannot be decoded.
    """
    classify = served.file_predictor("serving_default")
    probabilities, labels = [], []
    for start in range(0, len(paths), batch_size):
        out = classify(paths[start : start + batch_size])
        probabilities.append(out["probabilities"])
        labels += [served.classes.index(x) for x in out["label"]]
    return np.concatenate(probabilities), np.array(labels, np.int64)
