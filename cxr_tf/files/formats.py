"""JSON, CSV and NumPy files, which are written atomically and checked when read."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.files.atomic import write_atomically

# Types of a number for `read_json`: an undefined number is null.
NUMBER = (int, float, NoneType)


class MissingKey(UserError, KeyError):
    """Raised if a file of this package lacks a key.

    It is also a KeyError, which templates treat as an undefined value.
    """

    __str__ = Exception.__str__  # KeyError shows its argument in quotes


class Record(dict[str, Any]):
    """A JSON object read from a file; a missing key raises UserError with the key and the file."""

    def __init__(self, content: Mapping[str, Any], file: Path) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, key: str) -> NoReturn:
        raise MissingKey(str(damaged(self.file, f"it lacks '{key}'")))


def damaged(file: Path, reason: str) -> UserError:
    """Return the error for a damaged file of this package."""
    return UserError(f"{file} is damaged ({reason}): copy it again, or remove it")


def read_json(path: Path, fields: Mapping[str, Any] | None = None) -> Record:
    """Read a JSON object that this package wrote.

    fields: the expected type of each field, which is checked if the field is present: a type or a
    tuple of types, [type] for a list, a mapping for an object, in which "*" matches all other keys.
    Raises UserError if the content is not a JSON object or a field has the wrong type. Looking up a
    missing key in the result also raises UserError.
    """
    try:
        content = json.loads(path.read_text(), object_hook=lambda found: Record(found, path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, "it does not contain a JSON object")
    _check_type(content, fields or {}, "", path)
    return Record(content, path)


def _check_type(value: Any, kind: Any, name: str, file: Path) -> None:
    if isinstance(kind, Mapping):
        _check_type(value, dict, name, file)
        for key, entry in value.items():
            if key in kind or "*" in kind:
                _check_type(entry, kind.get(key, kind.get("*")), f"{name}/{key}".strip("/"), file)
    elif isinstance(kind, list):
        _check_type(value, list, name, file)
        for entry in value:
            _check_type(entry, kind[0], name, file)
    elif not isinstance(value, kind):
        raise damaged(file, f"'{name}' has the wrong type, {type(value).__name__}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    text = json.dumps(to_json_types(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write an .npz file atomically."""
    save = np.savez_compressed if compressed else np.savez

    def write(p: Path) -> None:
        with p.open("wb") as file:  # a file object, because savez adds .npz to names
            save(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file atomically."""

    def write(p: Path) -> None:
        with p.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)


def to_json_types(value: Any) -> Any:
    """Convert a value, including nested values, to JSON types."""
    if isinstance(value, dict):
        return {str(k): to_json_types(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(v) for v in value]
    if isinstance(value, np.ndarray):
        return to_json_types(value.tolist())
    if isinstance(value, np.generic):
        return to_json_types(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
