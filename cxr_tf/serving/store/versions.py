"""Write versions under `saved_models/<name>/`; each version appears atomically."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cxr_tf.errors import UserError
from cxr_tf.files import (
    disk_errno,
    exclusive_lock,
    expand_user,
    publish,
    to_json_types,
    write_json,
)
from cxr_tf.runs import Run
from cxr_tf.serving.store.cards import (
    CARD,
    check_files,
    describe_signature,
    file_digests,
    package_versions,
    read_card,
)
from cxr_tf.serving.store.model_config import (
    model_versions,
    read_models_config,
    write_models_config,
)
from cxr_tf.serving.store.warm_up import WARM_UP, signature_defs, write_warm_up

TRAINING_DIGESTS = Path("assets.extra") / "training_digests.txt"


def write_version(
    base: Path, write: Callable[[str], Any], *, card: dict[str, Any], resumed: bool = False
) -> Path:
    """Write the next version, `<base>/<n>/`, atomically, and return its folder.

    `write` writes the SavedModel into a folder whose name TF Serving does not recognise as a
    version; warm-up requests and the model card are added. The card is `card` with the name,
    version, signatures and versions of the software; its `training_digests` become a separate file,
    one digest per line, because there are thousands of them. Then `models.config` is updated.
    Existing versions are never changed, and the remains of a killed export are removed first. If a
    `resumed` run exported the newest version before it was interrupted, so that the cards are
    equal, that version is returned.

    Raises UserError if the disk is full or read-only.
    """
    check_saved_models(str(base.parent))
    is_first = not base.parent.exists()
    base.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(base.parent):  # its models share one models.config
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
    for remains in base.glob(".writing-*"):
        shutil.rmtree(remains)
    last = max(model_versions(base), default=0)
    if resumed and last and _has_card(base / str(last), card):
        write_models_config(base.parent)
        return base / str(last)
    version = last + 1
    partial = base / f".writing-{version}"
    try:
        write(str(partial))
        signatures = signature_defs(partial)
        (partial / CARD).parent.mkdir(exist_ok=True)
        write_warm_up(partial / WARM_UP, base.name, signatures)
        added = {
            "signatures": {k: describe_signature(v) for k, v in sorted(signatures.items())},
            "versions": package_versions(),
            "name": base.name,
            "version": version,
        }
        complete = {**card, **added}
        (partial / TRAINING_DIGESTS).write_text(
            "\n".join(sorted(complete.pop("training_digests", ()))) + "\n"
        )
        write_json(partial / CARD, {**complete, "files": file_digests(partial)})
        target = base / str(version)
        publish(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(base.iterdir()):
            base.rmdir()
        if is_first and not any(base.parent.iterdir()):
            base.parent.rmdir()
        if code := disk_errno(error):
            raise UserError(
                f"{base}: {os.strerror(code)}; nothing was exported. Free disk space or make the "
                "folder writable, or choose another --saved-models"
            ) from error
        raise
    write_models_config(base.parent)
    return target


def _has_card(version: Path, card: dict[str, Any]) -> bool:
    """Return whether a version has this card, apart from what `write_version` adds."""
    try:
        written = read_card(version)
        check_files(version, written)
    except (OSError, UserError):
        return False
    expected = {k: v for k, v in card.items() if k != "training_digests"}
    return to_json_types(expected) == {k: written.get(k) for k in expected}


def check_saved_models(path: str, name: str = "") -> None:
    """Raise UserError if a model cannot be exported to a folder; call this before training.

    The folder need not exist. A `models.config` that cannot be parsed is an error too: it was
    edited by hand, and the model could not be added to it.
    """
    root = expand_user(path)
    if root.exists() and not root.is_dir():
        raise UserError(f"--saved-models {path} is a file, not a folder: choose another")
    parent = root
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.exists():
        raise UserError(f"--saved-models {path}: {parent} is a broken link: choose another")
    if not parent.is_dir():
        raise UserError(f"--saved-models {path}: {parent} is a file, not a folder: choose another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--saved-models {path}: no permission to write to {parent}")
    if name and os.path.lexists(root / name) and not (root / name).is_dir():
        raise UserError(f"--saved-models {path}: {root / name} is not a folder: remove it")
    read_models_config(root)


def exported_by(run: Run) -> Path:
    """Return the folder of the version that a finished run exported.

    A relative path in the run's metrics is resolved against the working directory, then against the
    folder that contains `logs/`. Raises UserError if the folder contains no model, or that of
    another run.
    """
    recorded = run.metrics["model"]["saved_model"]
    project = run.directory.resolve().parents[2:3]
    candidates = [Path(recorded), *(folder / recorded for folder in project)]
    existing = [folder for folder in candidates if (folder / CARD).exists()]
    for folder in existing:
        card = read_card(folder)
        scored = card.get("metrics", {}).get("test", {})
        same_data = "data_fingerprint" not in card or (
            card["data_fingerprint"] == run.config["data_fingerprint"]
        )
        if same_data and scored and scored == {k: run.metrics["test"].get(k) for k in scored}:
            return folder
    problem = "contains another model" if existing else "does not exist"
    raise UserError(
        f"{run.directory} exported its model to {recorded}, which {problem}: run the command in "
        "the folder where the model was trained, or give fit_knn.py the SavedModel's folder"
    )
