"""The folder `saved_models/`: versions that appear whole, what is told of them, and models.config.

    folder = write_version(Path("saved_models/vgg16-binary"), write, card={...})
    versions(Path("saved_models/vgg16-binary"))          # [1, 2]

Beside the models stand `models.config` and `batching.config`, with which scripts/serve.sh starts TF
Serving.
"""

import errno
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.data.phantom import phantom
from cxr_tf.errors import UserError
from cxr_tf.paths import expanded, turn
from cxr_tf.runs import Run, plain, read_json, write_json

log = logging.getLogger(__name__)

CARD = Path("assets.extra") / "model_card.json"
LEARNT_FROM = Path("assets.extra") / "learnt_from.txt"


# Where TF Serving looks for requests to send itself before a version goes live.
WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"


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
    around = run.directory.resolve().parents
    places = [Path(told), *(project / told for project in around[2:3])]
    there = [place for place in places if (place / CARD).exists()]
    for place in there:
        card = read_json(place / CARD)
        scored = card.get("metrics", {}).get("test", {})
        same_data = "data_fingerprint" not in card or (
            card["data_fingerprint"] == run.config()["data_fingerprint"]
        )
        if same_data and scored and scored == {k: run.metrics()["test"].get(k) for k in scored}:
            return place
    what = "is another model's" if there else "is not here"
    raise UserError(
        f"{run.directory} exported to {told}, which {what}: start where it was trained, or name "
        "the SavedModel's folder"
    )
