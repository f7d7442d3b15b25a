"""SavedModels for TF Serving: signatures, versions that appear whole, and how to load them back.

    folder = export_classifier(model, Path("saved_models/vgg16-binary"), classes=..., ...)
    served = load_served(folder)
    served.signature("serving_default")(image_bytes=tf.constant([...]))["probabilities"]

Everything that was chosen (size, calibration, threshold, class names) is inside the graph: a client
sends the bytes of the file and needs nothing else. Beside the models stand `models.config` and
`batching.config`, with which scripts/serve.sh starts TF Serving.
"""

import errno
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import engine as engines
from cxr_tf.client import Ask, BadImages, as_text, bad_images, read_image
from cxr_tf.data.phantom import phantom
from cxr_tf.data.pipeline import (
    CORRUPT,
    FAULTS,
    FINE,
    decode_radiograph,
    header_fault,
    to_rgb,
)
from cxr_tf.errors import UserError
from cxr_tf.explain import occlusion
from cxr_tf.models.classifier import embedding_of
from cxr_tf.models.folding import fold_norms
from cxr_tf.paths import expanded, turn
from cxr_tf.runs import Run, plain, read_json, write_json

log = logging.getLogger(__name__)

CARD = Path("assets.extra") / "model_card.json"
LEARNT_FROM = Path("assets.extra") / "learnt_from.txt"

# Where TF Serving looks for requests to send itself before a version goes live.
WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"

# One of a SavedModel: a function of one tensor, which returns named tensors, and that tensor.
Signature = tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], tf.TensorSpec]

# A gRPC status is cut off at a few kilobytes.
_MOST_FAULTS_NAMED = 16


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

    def learnt_from(self) -> set[str]:
        """Digests (`Radiograph.digest`) of the files it was trained on or chosen by.

        Empty for an export that does not say.
        """
        file = self.folder / LEARNT_FROM
        return set(file.read_text().split()) if file.exists() else set()

    def decode(self, paths: list[str]) -> list[bytes]:
        """Contents of image files, as the signatures take them; DICOM becomes PNG on the way."""
        return [read_image(p) for p in paths]

    def ask(self, signature: str) -> Ask:
        """A signature that takes image files, called as one of a server (see `cxr_tf.client`).

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

    def ask_files(self, signature: str) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
        """As `ask`, of the paths of files; UserError names the first that is bad."""
        ask = self.ask(signature)

        def asked(paths: Sequence[str]) -> dict[str, np.ndarray]:
            try:
                return ask(self.decode(list(paths)))
            except BadImages as bad:
                row, reason = next(iter(bad.reasons.items()))
                raise UserError(f"{paths[row]}: {reason}") from None

        return asked

    def engine_of(self, signature: str) -> str:
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
            return engines.on_openvino(call, example=phantom_file(), precision=self.precision)
        except Exception as error:  # whatever it is, TensorFlow can do the work
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.engine == "openvino":
                raise UserError(
                    f"OpenVINO cannot run '{signature}' of {self.folder} ({reason}): take --engine "
                    "tensorflow"
                ) from error
            log.warning("'%s' runs on TensorFlow, not OpenVINO: %s", signature, reason)
            return call


def decode_images(image_bytes: tf.Tensor, size: int) -> tf.Tensor:
    """JPEG or PNG bytes, string [N] -> uint8 [N, size, size, 1], each by `decode_radiograph`.

    What every signature that takes files begins with. A request with a bad image gets no numbers at
    all, but an InvalidArgument error that names the positions of the bad ones:
    `image_bytes[3]: truncated or corrupt image (1834 bytes)`. Bad is what is empty, neither JPEG
    nor PNG (GIF and BMP too, which the decoder would take), of more than 50 megapixels, with a
    side below 16 pixels, or cannot be decoded. Sizes are read off the header, before anything is
    decoded. A JPEG damaged in the middle, which libjpeg decodes all the same, passes.
    """
    count = tf.size(image_bytes)
    blank = tf.zeros([size, size, 1], tf.uint8)

    def read(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        fault = header_fault(encoded)
        gray = tf.cond(fault == FINE, lambda: decode_radiograph(encoded, size), lambda: blank)
        return row, fault, gray

    files = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    # Of all that stock TensorFlow has, only tf.data goes on after an op has failed: the image drops
    # out, and its missing row number tells which it was. Four at a time, and not one to a core: a
    # large image takes a gigabyte while it is decoded.
    decoded = files.map(read, num_parallel_calls=4, deterministic=True).ignore_errors()
    # The batch must not be empty, so something goes before.
    before = tf.data.Dataset.from_tensors((tf.constant(-1), tf.constant(FINE), blank))
    batch = before.concatenate(decoded).batch(tf.cast(count, tf.int64) + 1)
    options = tf.data.Options()
    # Both are for streams that run for minutes.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    rows, faults, grays = batch.with_options(options).get_single_element()

    all_faults = tf.tensor_scatter_nd_update(tf.fill([count], CORRUPT), rows[1:, None], faults[1:])
    bad = tf.where(all_faults != FINE)[:, 0]
    named = bad[:_MOST_FAULTS_NAMED]
    # `client.bad_images` reads this.
    each = tf.strings.join(
        [
            *("image_bytes[", tf.strings.as_string(named), "]: "),
            tf.gather(tf.constant(FAULTS), tf.gather(all_faults, named)),
            *(" (", tf.strings.as_string(tf.strings.length(tf.gather(image_bytes, named)))),
            " bytes)",
        ]
    )
    message = tf.strings.reduce_join(each, separator="; ")
    in_all = [tf.strings.as_string(x) for x in (tf.size(bad), count)]
    message = tf.strings.join([message, "; ", in_all[0], " of ", in_all[1], " images"])
    with tf.control_dependencies([tf.debugging.Assert(tf.size(bad) == 0, [message])]):
        return tf.ensure_shape(tf.identity(grays[1:]), [None, size, size, 1])


def export_classifier(
    model: keras.Model,
    base: Path,
    *,
    classes: tuple[str, ...],
    threshold: float,
    card: dict[str, Any],
    resumed: bool = False,
) -> Path:
    """Writes a calibrated float32 classifier as the next version under `base`; returns its folder.

    Signatures (N images; C classes; S the model's size; D the embedding's width):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> probabilities float32 [N, C],
      classes string [N, C], label string [N];
    - `tensor`: images float32 [N, S, S, 3] in 0..255 -> the same;
    - `embed`: image_bytes -> embedding float32 [N, D];
    - `occlusion`: image_bytes -> heatmap float32 [N, S, S] (by how much the probability of the
      label falls where the image is covered, as of scripts/explain.py), and what
      `serving_default` answers.

    `threshold` is the probability of the second class from which on it is the label (two classes);
    with more classes the label is the most probable one.
    """
    model = fold_norms(model)
    size = int(model.input_shape[1])
    names = tf.constant(list(classes))
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")
    answers = {"embedding": embedding_of(model).output, "probabilities": model.output}
    whole = keras.Model(model.input, answers)
    # Traced once, and stored once, for all signatures that run it.
    network = tf.function(
        lambda x: whole(x, training=False), input_signature=[images], autograph=False
    )
    occluder = occlusion.make_occluder(model, occlusion.make_grid(size))

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        return to_rgb(decode_images(image_bytes, size))

    def answered(probabilities: tf.Tensor, predicted: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "probabilities": probabilities,
            "classes": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
            "label": tf.gather(names, predicted),
        }

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = network(images)["probabilities"]
        return answered(probabilities, decide(probabilities, threshold))

    def heat(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = network(images)["probabilities"]
        predicted = decide(probabilities, threshold)
        return {
            "heatmap": occlusion.heatmaps_of(occluder, images, predicted, classes),
            **answered(probabilities, predicted),
        }

    signatures: dict[str, Signature] = {
        "serving_default": (lambda x: classify(decode(x)), image_bytes),
        "tensor": (classify, images),
        "embed": (lambda x: {"embedding": network(decode(x))["embedding"]}, image_bytes),
        "occlusion": (lambda x: heat(decode(x)), image_bytes),
    }
    return write_version(base, lambda folder: save(signatures, folder), card=card, resumed=resumed)


def save(signatures: dict[str, Signature], folder: str) -> None:
    """Writes a SavedModel: by name, a function of one tensor and what that tensor is.

    As `keras.export.ExportArchive` does, which traces every function twice. What depends on a
    tensor is to be written as `tf.cond` and `tf.while_loop`.
    """
    traced = {
        name: tf.function(
            function, input_signature=[given], autograph=False
        ).get_concrete_function()
        for name, (function, given) in signatures.items()
    }
    module = tf.Module()
    # Of several signatures, but stored once.
    used = {id(v): v for function in traced.values() for v in function.variables}
    module.model_variables = list(used.values())
    tf.saved_model.save(module, folder, signatures=traced)


def decide(probabilities: tf.Tensor, threshold: float) -> tf.Tensor:
    """Class index of each row: the second of two from `threshold` on, else the most probable."""
    if probabilities.shape[-1] == 2:
        return tf.cast(probabilities[:, 1] >= threshold, tf.int64)
    return tf.argmax(probabilities, axis=-1)


def write_version(
    base: Path, write: Callable[[str], Any], *, card: dict[str, Any], resumed: bool = False
) -> Path:
    """Writes the next version `<base>/<n>/`, which appears whole or not at all.

    `write` fills the folder it is given, whose name TF Serving does not take for a version. A
    version that stands is never changed. What a killed export left is cleared away first. To what
    `write` put there come the warm-up requests and the model card, which is `card` with name,
    version, signatures and the versions of the software; then `models.config` is brought up to
    date. What `card` has under `learnt_from`, digests of files, becomes a file of its own, one to a
    line: thousands of them would bury the card. Of a training that is `resumed`, the newest version
    is what it exported before it was interrupted, if its card says the same; then it is taken.

    Raises UserError where the disk is full or must not be written.
    """
    check_saved_models(str(base.parent))
    is_first = not base.parent.exists()
    base.parent.mkdir(parents=True, exist_ok=True)
    with turn(base.parent):  # which has one models.config
        return _write_version(base, write, card, resumed=resumed, is_first=is_first)


def _write_version(
    base: Path,
    write: Callable[[str], Any],
    card: dict[str, Any],
    *,
    resumed: bool,
    is_first: bool,
) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(".writing-*"):
        shutil.rmtree(left)
    last = max(versions(base), default=0)
    if resumed and last and _says_the_same(base / str(last), card):
        write_models_config(base.parent)
        return base / str(last)
    version = last + 1
    beside = base / f".writing-{version}"
    try:
        write(str(beside))
        signatures = _signature_defs(beside)
        (beside / CARD).parent.mkdir(exist_ok=True)
        write_warm_up(beside / WARM_UP, base.name, signatures)
        described = {
            "signatures": {k: _described(v) for k, v in sorted(signatures.items())},
            "versions": _software(),
            "name": base.name,
            "version": version,
        }
        told = {**card, **described}
        (beside / LEARNT_FROM).write_text("\n".join(sorted(told.pop("learnt_from", ()))) + "\n")
        write_json(beside / CARD, told)
        target = base / str(version)
        os.rename(beside, target)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not any(base.iterdir()):
            base.rmdir()
        if is_first and not any(base.parent.iterdir()):
            base.parent.rmdir()
        if reason := _disk_fault(error):
            raise UserError(
                f"{base}: {reason}; nothing was exported. Make room, or choose another "
                "--saved-models"
            ) from error
        raise
    write_models_config(base.parent)
    return target


def _says_the_same(version: Path, card: dict[str, Any]) -> bool:
    """Whether a version has this card, but for what `write_version` adds to it."""
    try:
        written = json.loads((version / CARD).read_text())
    except (OSError, ValueError):
        return False
    told = {k: v for k, v in card.items() if k != "learnt_from"}
    return plain(told) == {k: written.get(k) for k in told}


def check_saved_models(path: str, name: str = "") -> None:
    """Raises UserError where a model cannot be exported to a folder, before the work is done.

    It need not exist. A `models.config` in it that is no such file is an error too: somebody wrote
    it by hand, and an export would have to overwrite it.
    """
    root = expanded(path)
    if root.exists() and not root.is_dir():
        raise UserError(f"--saved-models {path} is a file, not a folder: choose another")
    there = root
    while not os.path.lexists(there):
        there = there.parent
    if not there.exists():
        raise UserError(f"--saved-models {path}: {there} is a link that leads nowhere")
    if not there.is_dir():
        raise UserError(f"--saved-models {path}: {there} is a file, not a folder: choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--saved-models {path}: no permission to write to {there}")
    if name and os.path.lexists(root / name) and not (root / name).is_dir():
        raise UserError(f"--saved-models {path}: {root / name} is in the way, and no folder")
    read_models_config(root)


def _disk_fault(error: BaseException) -> str:
    """Why a file could not be written, where the disk is to blame; else an empty string."""
    if isinstance(error, OSError):
        return error.strerror or ""
    if isinstance(error, tf.errors.OpError):
        # TensorFlow has fewer kinds of errors than the system, but quotes it.
        kinds = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
        told = [os.strerror(getattr(errno, kind)) for kind in kinds if hasattr(errno, kind)]
        return next((text for text in told if text in str(error.message)), "")
    return ""


# ---------------------------------------------------------------------- what TF Serving reads


def write_warm_up(path: Path, name: str, signatures: dict[str, Any]) -> None:
    """One request for each signature, made of a phantom, as TF Serving's warm-up file.

    TF Serving sends them to a version that it has loaded, and only then lets it answer others: the
    first user does not wait for buffers and kernels. `signatures` are the model's SignatureDefs.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, definition in sorted(signatures.items()):
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=name, signature_name=signature)
            )
            for key, info in definition.inputs.items():
                shape = [max(d.size, 1) for d in info.tensor_shape.dim]
                values = _phantom_input(tf.as_dtype(info.dtype), shape)
                request.inputs[key].CopyFrom(tf.make_tensor_proto(values, info.dtype, shape))
            record = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(record.SerializeToString())


def phantom_file(size: int = 128) -> bytes:
    """A phantom as the contents of a PNG file."""
    image = phantom("bacterial", seed=0, patient=0, size=size).image
    return tf.io.encode_png(image[..., None]).numpy()


def _phantom_input(dtype: tf.DType, shape: list[int]) -> Any:
    """An input of that type and shape: files of phantoms, or their pixels as far as they reach."""
    if dtype == tf.string:
        return np.full(shape, phantom_file(), object)
    if len(shape) == 4:
        height, width = shape[1:3]
        image = phantom("bacterial", seed=0, patient=0, size=max(32, height, width)).image
        return np.broadcast_to(image[:height, :width, None], shape).astype(dtype.as_numpy_dtype)
    return np.zeros(shape, dtype.as_numpy_dtype)


def _signature_defs(folder: Path) -> dict[str, Any]:
    """The SignatureDefs of a SavedModel, by name, without those that TensorFlow keeps there."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    return {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}


def _described(signature: Any) -> dict[str, Any]:
    """A SignatureDef for the model card: {inputs, outputs}: {name: dtype and shape}."""
    return {
        side: {
            name: {
                "dtype": tf.as_dtype(info.dtype).name,
                # None is the number of images.
                "shape": [None if d.size < 0 else d.size for d in info.tensor_shape.dim],
            }
            for name, info in sorted(tensors.items())
        }
        for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def _software() -> dict[str, str]:
    packages = {p: metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
    return {"python": platform.python_version(), **packages}


_MODELS_CONFIG_HEAD = """\
# What TF Serving serves; scripts/serve.sh starts it with this file, and it follows every change.
# Each export writes the file anew from the folders that are there, and lists all their versions:
# to serve a version no more, delete its folder. A request that names neither version nor label is
# answered by the newest.
#
# Yours to add, and kept: labels, and models from elsewhere (comments are not kept). With
#
#     version_labels { key: "stable" value: 1 }
#     version_labels { key: "canary" value: 2 }
#
# in a config, clients that ask for "stable" stay with version 1 whatever is exported. To release,
# or to roll back, change the number.
"""

_BATCHING_CONFIG = """\
# Used by `scripts/serve.sh --batching`, which is off by default: TF Serving then puts the images of
# several clients into one request, and a bad image of one makes it fail for all.
# Written once; change it as you like.

# The most images that run together. Requests of more are refused, and predict.py sends 32.
max_batch_size { value: 32 }

# How long to wait for a batch to fill. On a CPU a full batch is hardly faster for each image than
# single ones, so nobody should wait. GPU: 5000.
batch_timeout_micros { value: 0 }

# Batches that run at the same time: as many as the serving machine has CPU cores (here the number
# of the machine that exported). GPU: 2, of which one is copied while the other runs.
num_batch_threads { value: CORES }

# What is beyond is refused at once (REST 503, gRPC UNAVAILABLE), and predict.py tries again.
max_enqueued_batches { value: 100 }
"""


def write_models_config(root: Path) -> None:
    """Writes `models.config` from the models under `root`, and `batching.config` if there is none.

    Labels that stand in the file are kept while their version is there, and so are models from
    elsewhere. Each version is listed by its number and not left to TF Serving to find, because a
    label needs the version it points to loaded, be it the newest or not. Paths are absolute: TF
    Serving takes no others. A file that cannot be parsed is left as it is, with a warning.
    """
    from google.protobuf import text_format

    path = root / "models.config"
    while True:
        found = models(root)
        try:
            before = read_models_config(root)
        except UserError as error:
            log.warning("%s; it is left as it is, and does not list what was exported", error)
            return
        config = _models_config(root, found, before)
        _replace(
            path, _MODELS_CONFIG_HEAD + "\n" + text_format.MessageToString(config, as_utf8=True)
        )
        # Another export may have looked before this one's version was there, and written after.
        # Whoever writes last finds nothing new here, and then the file is complete.
        if models(root) == found:
            break
    batching = root / "batching.config"
    if not batching.exists():
        _replace(batching, _BATCHING_CONFIG.replace("CORES", str(os.cpu_count() or 1)))


def models(root: Path) -> dict[str, list[int]]:
    """{name: versions} of the models under a folder, in the order of their names."""
    found = {
        folder.name: [v for v in versions(folder) if (folder / str(v) / "saved_model.pb").exists()]
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return {name: numbers for name, numbers in found.items() if numbers}


def read_models_config(root: Path) -> Any:
    """The ModelServerConfig in `models.config`; an empty one where there is no such file.

    Raises UserError for a file that cannot be parsed.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    path = root / "models.config"
    config = model_server_config_pb2.ModelServerConfig()
    if path.exists():
        try:
            text_format.Parse(path.read_text(), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is no ModelServerConfig ({error}): mend or remove it"
            ) from None
    return config


def _models_config(root: Path, found: dict[str, list[int]], before: Any) -> Any:
    from tensorflow_serving.config import model_server_config_pb2

    root = root.resolve()
    earlier = {c.name: c for c in before.model_config_list.config}
    config = model_server_config_pb2.ModelServerConfig()
    for name, numbers in found.items():
        entry = config.model_config_list.config.add(
            name=name, base_path=str(root / name), model_platform="tensorflow"
        )
        entry.model_version_policy.specific.versions.extend(numbers)
        if name not in earlier:
            continue
        for label, number in sorted(earlier[name].version_labels.items()):
            if number in numbers:
                entry.version_labels[label] = number
            else:
                # TF Serving would refuse the whole file.
                log.warning("%s: label '%s' dropped, version %d is gone", name, label, number)
    for name, entry in earlier.items():
        if name not in found and Path(entry.base_path).parent != root:
            config.model_config_list.config.append(entry)
    return config


def _replace(path: Path, text: str) -> None:
    """Writes a file that other processes may write at the same moment, whole or not at all."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(beside, 0o644)  # mkstemp lets nobody else read it, TF Serving included
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- versions, read


def versions(base: Path) -> list[int]:
    """Versions under a model's folder, ascending."""
    if not base.is_dir():
        return []
    named = (d for d in base.iterdir() if re.fullmatch("[0-9]+", d.name))
    return sorted(int(d.name) for d in named if d.is_dir())


def exported_by(run: Run) -> Path:
    """The folder of the version that a finished run exported.

    Its path is recorded as the run knew it: from the working directory, or from the folder in which
    `logs/` lies. Raises UserError where no model stands there, or another one.
    """
    told = run.metrics()["model"]["saved_model"]
    project = run.directory.resolve().parents[2]
    there = [place for place in (Path(told), project / told) if (place / CARD).exists()]
    for place in there:
        scored = read_json(place / CARD).get("metrics", {}).get("test", {})
        if scored and scored == {k: run.metrics()["test"].get(k) for k in scored}:
            return place
    what = "is another model's" if there else "is not here"
    raise UserError(
        f"{run.directory} exported to {told}, which {what}: start where it was trained, or name "
        "the SavedModel's folder"
    )


def load_served(
    model: str, *, engine: str = "tensorflow", precision: str = "float32"
) -> ServedModel:
    """Loads a SavedModel of ours from its folder (newest version) or a version's folder.

    engine, precision: see `engine.takes_openvino`. Raises UserError where there is no model, not
    that engine, and for another precision than float32 where the model is no classifier: what that
    costs is measured of classifiers alone.
    """
    if not engines.takes_openvino(engine, precision):
        engine = "tensorflow"
    folder = expanded(model)
    if not folder.is_dir():
        raise UserError(f"no such model: {model} (expected saved_models/<name> or .../<version>)")
    if not (folder / "saved_model.pb").exists():
        found = versions(folder)
        if not found:
            raise UserError(f"{model} holds no SavedModel and no versions of one")
        folder = folder / str(found[-1])
    if not (folder / CARD).exists():
        raise UserError(f"{folder} is not a SavedModel of cxr_tf: it has no {CARD}")
    card = read_json(folder / CARD)
    if precision != "float32" and card["kind"] != "classifier":
        raise UserError(f"--engine-precision {precision} is for classifiers: leave it out")
    if engine == "auto" and card.get("backbone") in engines.SLOWER_ON_OPENVINO:
        engine = "tensorflow"
    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return ServedModel(folder, card, loaded, engine, precision)


def predict_files(
    served: ServedModel, paths: list[str], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, C] and predicted class index int64 [N] of image files.

    Raises UserError that names the file where one cannot be decoded.
    """
    classify = served.ask_files("serving_default")
    probabilities, labels = [], []
    for start in range(0, len(paths), batch_size):
        out = classify(paths[start : start + batch_size])
        probabilities.append(out["probabilities"])
        labels += [served.classes.index(x) for x in out["label"]]
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
    resumed: bool = False,
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
    look at the finished SavedModel there and raise; of a `resumed` job neither may be needed, see
    `write_version`.
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

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False
    )
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

    return write_version(base, write, card=card, resumed=resumed)


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
