"""Reading of a run's `config.json`, and the types of its fields."""

from pathlib import Path
from typing import Any

from cxr_tf import legacy
from cxr_tf.files import Record, read_json

CONFIG = "config.json"

# Types of the fields.
CONFIG_FIELDS = {
    "job": str,
    "name": str,
    "command": str,
    "settings": dict,
    "resolved": dict,
    "data_fingerprint": str,
    "data_is_phantom": bool,
    "images": int,
    "packages": {"*": str},
    "python": str,
    "git_commit": str,
}


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of `config.json`, with settings under their present names."""
    file = directory / CONFIG
    config = read_json(file, CONFIG_FIELDS)
    for key in config.keys() & {"settings", "resolved"}:
        config[key] = Record(legacy.present_settings(config[key]), file)
    return config
