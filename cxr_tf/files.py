"""Files and folders that appear whole or not at all; locks; digests; paths as users write them."""

import contextlib
import csv
import hashlib
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
    """Return the path with `~` and `~name` expanded; unchanged where no such user exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a folder may have such a name
        return Path(path)


def short_stem(path: Path) -> str:
    """Return the file's stem, cut so that a name derived from it fits into 255 bytes."""
    return os.fsencode(path.stem)[:150].decode(errors="ignore")


def digest_files(*paths: str | Path, algorithm: str = "blake2b") -> str:
    """Return the hex digest of the contents of files, one after the other.

    algorithm: blake2b, of 16 bytes, or another one of `hashlib`, at its full length, where a
    published checksum asks for it.
    """
    digest = hashlib.blake2b(digest_size=16) if algorithm == "blake2b" else hashlib.new(algorithm)
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# Descriptors of the directories that this process has locked, by device and inode.
held_locks: dict[tuple[int, int], int] = {}


def identity(folder: Path) -> tuple[int, int]:
    """Return device and inode, which a folder keeps when it is renamed."""
    state = folder.stat()
    return state.st_dev, state.st_ino


def lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder against other processes; return a descriptor that holds the lock until closed.

    None where the file system or the operating system has no locks. Raises BlockingIOError where
    another process holds the lock and `wait` is false.
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
    """Hold the lock of a folder for the duration of a block; wait for it where necessary."""
    # A process that waited for a lock of its own would wait forever.
    descriptor = None if identity(folder) in held_locks else lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder next to `folder`, to be filled and renamed within the block.

    It is removed at the end unless it was renamed. Remains of a killed process are removed first,
    and a process that is filling it is waited for: check again then whether `folder` exists. Where
    there are no locks, each process gets a folder of its own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, descriptor = _locked_and_empty(folder.with_name(f".{folder.name}.writing"))
    try:
        yield partial
    finally:
        if descriptor is None or _is_same(partial, descriptor):
            shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _locked_and_empty(partial: Path) -> tuple[Path, int | None]:
    """Create a folder, lock it and empty it; one with a unique name where there are no locks."""
    while True:
        try:
            partial.mkdir(exist_ok=True)
            descriptor = lock(partial, wait=True)
        except (FileExistsError, FileNotFoundError):
            continue  # whoever had it has just renamed or removed it
        if descriptor is None:
            unique = Path(tempfile.mkdtemp(prefix=f"{partial.name}-", dir=partial.parent))
            unique.chmod(0o755)  # mkdtemp lets nobody else in, which would outlive the renaming
            with contextlib.suppress(OSError):  # another process's, perhaps
                partial.rmdir()
            return unique, None
        if _is_same(partial, descriptor):
            break
        os.close(descriptor)
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return partial, descriptor


def _is_same(folder: Path, descriptor: int) -> bool:
    """Return whether the folder of that name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def acquire_lock(directory: Path) -> None:
    """Lock a directory for this process until `release_lock` or its end.

    Raises UserError where another process holds it. Does nothing where the file system or the
    operating system has no locks.
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
    """Release a directory that `acquire_lock` locked, if it did."""
    descriptor = held_locks.pop(identity(directory), None)
    if descriptor is not None:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this package wrote; UserError where the file is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or remove it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: copy it again, or remove it")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite become null."""
    text = json.dumps(to_json_types(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write an .npz file whole or not at all."""
    save = np.savez_compressed if compressed else np.savez

    def write(p: Path) -> None:
        with p.open("wb") as file:  # a file object, because savez adds .npz to names
            save(file, allow_pickle=False, **arrays)

    write_atomically(path, write)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file whole or not at all."""

    def write(p: Path) -> None:
        with p.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`.

    The temporary file is removed where anything goes wrong.
    """
    partial = path.with_name(f".{path.name}.writing")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def to_json_types(value: Any) -> Any:
    """Convert a value, nested ones included, to the types of JSON."""
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
    """Write a file that several processes may write at the same time, whole or not at all."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(partial, 0o644)  # mkstemp lets nobody else read it, TF Serving included
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
