"""Versions under `saved_models/<name>/`, which appear whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.files import exclusive_lock, expand_user, read_json, to_json_types, write_json
from cxr_tf.runs import Run
from cxr_tf.serving.cards import CARD, describe_signature, package_versions
from cxr_tf.serving.model_config import model_versions, read_models_config, write_models_config
from cxr_tf.serving.warm_up import WARM_UP, signature_defs, write_warm_up

TRAINING_DIGESTS = Path("assets.extra") / "training_digests.txt"


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
    with exclusive_lock(base.parent):  # which has one models.config
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
    last = max(model_versions(base), default=0)
    if resumed and last and _says_the_same(base / str(last), card):
        write_models_config(base.parent)
        return base / str(last)
    version = last + 1
    beside = base / f".writing-{version}"
    try:
        write(str(beside))
        signatures = signature_defs(beside)
        (beside / CARD).parent.mkdir(exist_ok=True)
        write_warm_up(beside / WARM_UP, base.name, signatures)
        described = {
            "signatures": {k: describe_signature(v) for k, v in sorted(signatures.items())},
            "versions": package_versions(),
            "name": base.name,
            "version": version,
        }
        told = {**card, **described}
        (beside / TRAINING_DIGESTS).write_text(
            "\n".join(sorted(told.pop("training_digests", ()))) + "\n"
        )
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
    told = {k: v for k, v in card.items() if k != "training_digests"}
    return to_json_types(told) == {k: written.get(k) for k in told}


def check_saved_models(path: str, name: str = "") -> None:
    """Raises UserError where a model cannot be exported to a folder, before the work is done.

    It need not exist. A `models.config` in it that is no such file is an error too: somebody wrote
    it by hand, and an export would have to overwrite it.
    """
    root = expand_user(path)
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


def exported_by(run: Run) -> Path:
    """The folder of the version that a finished run exported.

    Its path is recorded as the run knew it: from the working directory, or from the folder in which
    `logs/` lies. Raises UserError where no model stands there, or another one.
    """
    told = run.metrics["model"]["saved_model"]
    around = run.directory.resolve().parents
    places = [Path(told), *(project / told for project in around[2:3])]
    there = [place for place in places if (place / CARD).exists()]
    for place in there:
        card = read_json(place / CARD)
        scored = card.get("metrics", {}).get("test", {})
        same_data = "data_fingerprint" not in card or (
            card["data_fingerprint"] == run.config["data_fingerprint"]
        )
        if same_data and scored and scored == {k: run.metrics["test"].get(k) for k in scored}:
            return place
    what = "is another model's" if there else "is not here"
    raise UserError(
        f"{run.directory} exported to {told}, which {what}: start where it was trained, or name "
        "the SavedModel's folder"
    )
