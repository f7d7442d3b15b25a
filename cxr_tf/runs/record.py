"""The record of a run's settings, data and software, which is compared when the run is resumed."""

import dataclasses
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from cxr_tf import legacy
from cxr_tf.errors import UserError
from cxr_tf.files import to_json_types
from cxr_tf.runs.run import Catalog, Run

RECORDED_PACKAGES = ("tensorflow", "keras", "scikit-learn", "numpy", "tensorboard", "cxr_tf")

# Settings that may differ when a run is resumed, because they do not change the results. The data
# are compared by content, so that a moved folder counts as the same.
NOT_COMPARED = ("resume", "name", "data", "logs", "saved_models", "engine", "worker_timeout")


def run_record(job: str, name: str, settings: Any, data: Catalog | Run | None) -> dict[str, Any]:
    """Return the content of `config.json`: settings, data if there are any, and software."""
    return {
        "job": job,
        "name": name,
        "settings": dataclasses.asdict(settings),
        **(_facts(data) if data is not None else {}),
        "packages": {p: _version(p) for p in RECORDED_PACKAGES},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }


def added_settings(settings: Any, resolved: Any) -> dict[str, Any]:
    """Return the resolved settings whose values differ from those of the given settings."""
    given = dataclasses.asdict(settings)
    return {k: v for k, v in dataclasses.asdict(resolved).items() if v != given[k]}


def _facts(data: Catalog | Run) -> dict[str, Any]:
    """Return the entries of `config.json` about the data."""
    if isinstance(data, Run):
        config = data.config
        return {key: config[key] for key in ("data_fingerprint", "data_is_phantom", "images")}
    return {
        "data_fingerprint": data.fingerprint(),
        "data_is_phantom": data.is_phantom,
        "images": len(data),
    }


def check_unchanged(run: Run, config: dict[str, Any]) -> None:
    """Raise UserError if a run was started with settings or data other than those in `config`."""
    before = run.config
    # Settings first: another --seed may draw other splits, and the error should then name the seed.
    for key, value in config["settings"].items():
        flag = "--" + key.replace("_", "-")
        if key not in before["settings"] and legacy.ADDED_SETTINGS.get(key) == value:
            continue
        if key not in NOT_COMPARED and key not in before["settings"]:
            raise UserError(
                f"{run.directory} was started by a version of cxr_tf without {flag}: choose "
                "another --name"
            )
        old = before["settings"].get(key)
        if key not in NOT_COMPARED and to_json_types(old) != to_json_types(value):
            raise UserError(
                f"{run.directory} was started {_in_words(flag, old, value)}: resume it with the "
                "same settings, or choose another --name"
            )
    if before["data_fingerprint"] != config["data_fingerprint"]:
        raise UserError(
            f"the data differ from those that {run.directory} was started with: resume it with the "
            "same data, or choose another --name"
        )


def _in_words(flag: str, old: Any, value: Any) -> str:
    """Return how a run was started; the value of a flag that was left out is False or None."""
    if old is None or old is False:
        return f"without {flag}"
    if old is True:
        return f"with {flag}"
    return f"with {flag} {old}" if value is None else f"with {flag} {old}, not {value}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
