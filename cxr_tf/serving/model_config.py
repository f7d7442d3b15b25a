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
        found = model_versions_by_name(root)
        try:
            before = read_models_config(root)
        except UserError as error:
            log.warning("%s; it is left as it is, and does not list what was exported", error)
            return
        config = _models_config(root, found, before)
        replace_text(
            path, _MODELS_CONFIG_HEAD + "\n" + text_format.MessageToString(config, as_utf8=True)
        )
        # Another export may have looked before this one's version was there, and written after.
        # Whoever writes last finds nothing new here, and then the file is complete.
        if model_versions_by_name(root) == found:
            break
    batching = root / "batching.config"
    if not batching.exists():
        replace_text(batching, _BATCHING_CONFIG.replace("CORES", str(os.cpu_count() or 1)))


def model_versions_by_name(root: Path) -> dict[str, list[int]]:
    """{name: versions} of the models under a folder, in the order of their names."""
    found = {
        folder.name: [
            v for v in model_versions(folder) if (folder / str(v) / "saved_model.pb").exists()
        ]
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


def model_versions(base: Path) -> list[int]:
    """Versions under a model's folder, ascending."""
    if not base.is_dir():
        return []
    named = (d for d in base.iterdir() if re.fullmatch("[0-9]+", d.name))
    return sorted(int(d.name) for d in named if d.is_dir())
