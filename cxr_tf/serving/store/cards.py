"""The model card of an export."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.files import NUMBER, Record, digest_files, read_json

CARD = Path("assets.extra") / "model_card.json"

# Types of the fields of a card that the package reads.
CARD_FIELDS = {
    "kind": str,
    "task": str,
    "name": str,
    "version": int,
    "classes": [str],
    "image_size": int,
    "backbone": str,
    "threshold": NUMBER,
    "data_fingerprint": str,
    "metrics": dict,
    "signatures": dict,
    "files": {"*": str},
}


def read_card(folder: Path) -> Record:
    """Read the model card of a version; raise UserError if it is damaged."""
    return read_json(folder / CARD, CARD_FIELDS)


def file_digests(folder: Path) -> dict[str, str]:
    """Return {relative path: digest} of all files of a version except its card."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: digest_files(path) for name, path in names.items() if name != CARD.as_posix()}


def check_files(folder: Path, card: Mapping[str, Any]) -> None:
    """Raise UserError if a file of a version differs from its digest in the card.

    Files that no graph needs, such as warm-up requests, may be missing. Cards that were written by
    earlier versions of the package have no digests.
    """
    for name, digest in card.get("files", {}).items():
        file = folder / name
        is_needed = name.startswith(("saved_model", "fingerprint", "variables/", "assets/"))
        if file.exists() and digest_files(file) == digest:
            continue
        if file.exists() or is_needed:
            problem = "differs from its digest in the model card" if file.exists() else "is missing"
            raise UserError(
                f"the model {folder} is damaged: {name} {problem}; copy or export it again"
            )


def describe_signature(signature: Any) -> dict[str, Any]:
    """Return a SignatureDef for the model card: the dtype and shape of each input and output."""
    return {
        side: {
            name: {
                "dtype": tf.as_dtype(info.dtype).name,
                # None stands for the number of images.
                "shape": [None if d.size < 0 else d.size for d in info.tensor_shape.dim],
            }
            for name, info in sorted(tensors.items())
        }
        for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that an export depends on."""
    packages = {p: metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
    return {"python": platform.python_version(), **packages}
