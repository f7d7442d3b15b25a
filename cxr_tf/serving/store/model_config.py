"""`models.config` and `batching.config`, which TF Serving reads."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from cxr_tf.errors import UserError
from cxr_tf.files import replace_text

log = logging.getLogger(__name__)


_MODELS_CONFIG_HEAD = """\
# The models that TF Serving serves. scripts/serve.sh starts it with this file, which TF Serving
# reloads when it changes. Each export rewrites the file and lists all existing versions: to retire
# a version, delete its folder. Requests without a version or label go to the newest version.
#
# You may add labels, and models from other folders: each export keeps them, but not comments. With
#
#     version_labels { key: "stable" value: 1 }
#     version_labels { key: "canary" value: 2 }
#
# in the config of a model, clients that request "stable" stay on version 1 whatever is exported. To
# release a version, or to roll back, change the number.
"""

_BATCHING_CONFIG = """\
# Used by `scripts/serve.sh --batching`, which is off by default: TF Serving then merges the images
# of several clients into one batch, and one bad image fails the requests of all of them.
# Written once; edit it as you like.

# Maximum number of images per batch. Larger requests are refused; predict.py sends 32.
max_batch_size { value: 32 }

# Time to wait for a batch to fill. On a CPU, large batches are hardly faster per image than single
# images, so do not wait. With a GPU: 5000.
batch_timeout_micros { value: 0 }

# Batches that run in parallel: the number of CPU cores of the serving machine (here, the number of
# the exporting machine). With a GPU: 2, so that one batch is copied while the other runs.
num_batch_threads { value: CORES }

# Further requests are refused at once (REST 503, gRPC UNAVAILABLE), and predict.py retries.
max_enqueued_batches { value: 100 }
"""


def write_models_config(root: Path) -> None:
    """Write `models.config` for the models under `root`, and `batching.config` if it is missing.

    Labels in the existing file are kept while their version exists, and so are models from other
    folders. Versions are listed by number, because the version of a label must be loaded even if it
    is not the newest. Paths are absolute, as TF Serving requires. A file that cannot be parsed is
    left unchanged, with a warning.
    """
    from google.protobuf import text_format

    path = root / "models.config"
    while True:
        exported = model_versions_by_name(root)
        try:
            previous = read_models_config(root)
        except UserError as error:
            log.warning("%s. The file was left unchanged and does not list this export", error)
            return
        config = _models_config(root, exported, previous)
        replace_text(
            path, _MODELS_CONFIG_HEAD + "\n" + text_format.MessageToString(config, as_utf8=True)
        )
        # Another export may have listed the folder before this version existed, and written its
        # file after this one. The last process to write sees no change here: its file is complete.
        if model_versions_by_name(root) == exported:
            break
    batching = root / "batching.config"
    if not batching.exists():
        replace_text(batching, _BATCHING_CONFIG.replace("CORES", str(os.cpu_count() or 1)))


def model_versions_by_name(root: Path) -> dict[str, list[int]]:
    """Return {name: versions} of the models under a folder, sorted by name."""
    versions = {
        folder.name: [
            v for v in model_versions(folder) if (folder / str(v) / "saved_model.pb").exists()
        ]
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return {name: numbers for name, numbers in versions.items() if numbers}


def read_models_config(root: Path) -> Any:
    """Return the ModelServerConfig in `models.config`, or an empty one if there is no file.

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
                f"{path} is not a ModelServerConfig ({error}): fix or remove it"
            ) from None
    return config


def _models_config(root: Path, exported: dict[str, list[int]], previous: Any) -> Any:
    from tensorflow_serving.config import model_server_config_pb2

    root = root.resolve()
    earlier = {c.name: c for c in previous.model_config_list.config}
    config = model_server_config_pb2.ModelServerConfig()
    for name, numbers in exported.items():
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
                log.warning(
                    "%s: label '%s' removed, because version %d no longer exists",
                    *(name, label, number),
                )
    for name, entry in earlier.items():
        if name not in exported and Path(entry.base_path).parent != root:
            config.model_config_list.config.append(entry)
    return config


def model_versions(base: Path) -> list[int]:
    """Return the version numbers under a model's folder, ascending."""
    if not base.is_dir():
        return []
    numbered = (d for d in base.iterdir() if re.fullmatch("[0-9]+", d.name))
    return sorted(int(d.name) for d in numbered if d.is_dir())
