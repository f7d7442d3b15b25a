"""Files and folders that appear whole or not at all; locks; paths as users write them."""

import contextlib
import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.errors import UserError


def expand_user(path: str) -> Path:
    """The path with `~` and `~name` in full; as it is where there is nobody of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a folder may be called so
        return Path(path)


def short_stem(path: Path) -> str:
    """The file's name without its ending, cut so that a name made of it fits into 255 bytes."""
    return os.fsencode(path.stem)[:150].decode(errors="ignore")


# Descriptors of the folders that this process keeps, by device and inode (see `runs.claim`).
held_locks: dict[tuple[int, int], int] = {}


def identity(folder: Path) -> tuple[int, int]:
    """Device and inode, which a folder keeps when it is renamed."""
    state = folder.stat()
    return state.st_dev, state.st_ino


def lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that keeps a folder from other processes until it is closed.

    None on a file system or a system that knows no locks. Raises BlockingIOError where another
    process has it, unless that is to be waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block with the same folder."""
    # What this process keeps anyway it would wait for in vain.
    descriptor = None if identity(folder) in held_locks else lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """An empty hidden folder beside `folder`, to be filled, and renamed at the end of the block.

    Where it is not, it goes. What a killed process left of one is cleared away first, and a process
    that is filling one is waited for: look for `folder` again then. Without locks nobody can know
    of the other, and each has a folder of its own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, descriptor = _taken(folder.with_name(f".{folder.name}.writing"))
    try:
        yield partial
    finally:
        if descriptor is None or _is(partial, descriptor):
            shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _taken(partial: Path) -> tuple[Path, int | None]:
    """The folder, empty and locked; one with another name where there are no locks."""
    while True:
        try:
            partial.mkdir(exist_ok=True)
            descriptor = lock(partial, wait=True)
        except (FileExistsError, FileNotFoundError):
            continue  # whoever had it has just renamed or removed it
        if descriptor is None:
            own = Path(tempfile.mkdtemp(prefix=f"{partial.name}-", dir=partial.parent))
            own.chmod(0o755)  # mkdtemp lets nobody else in, which would outlive the renaming
            with contextlib.suppress(OSError):  # another process's, perhaps
                partial.rmdir()
            return own, None
        if _is(partial, descriptor):
            break
        os.close(descriptor)
    for left in partial.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return partial, descriptor


def _is(folder: Path, descriptor: int) -> bool:
    """Whether the folder of that name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def acquire_lock(directory: Path) -> None:
    """Keeps a directory for this process until `release`, or its end: two would write one file.

    Raises UserError where another process has it. Does nothing on a file system or a system that
    knows no locks.
    """
    if identity(directory) in held_locks:
        return
    try:
        descriptor = lock(directory, wait=False)
    except BlockingIOError:
        raise UserError(f"another process is working on {directory}; wait for it") from None
    if descriptor is not None:
        held_locks[identity(directory)] = descriptor


def release_lock(directory: Path) -> None:
    """Lets others have a directory that `claim` kept, if it did."""
    descriptor = held_locks.pop(identity(directory), None)
    if descriptor is not None:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; UserError where it is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: copy it again, or remove it")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite become null."""
    text = json.dumps(to_json_types(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes an .npz whole or not at all."""
    save = np.savez_compressed if compressed else np.savez

    def write(p: Path) -> None:
        with p.open("wb") as file:  # a file object, because savez adds .npz to names
            save(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Writes CSV whole or not at all."""

    def write(p: Path) -> None:
        with p.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a path beside, then renames it; removes it if anything goes wrong."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def to_json_types(value: Any) -> Any:
    """The value in types that JSON has."""
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


def replace_text(path: Path, text: str) -> None:
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
