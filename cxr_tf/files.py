"""Files and folders that appear whole or not at all; locks; digests; paths as users write them.

Content is written under a hidden temporary name in the same folder, synchronised to the disk, and
renamed. Whatever a killed process leaves behind has such a name, and the next process removes it.
"""

import contextlib
import csv
import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import numpy as np

from cxr_tf.errors import UserError


def expand_user(path: str) -> Path:
    """Return the path with `~` and `~name` expanded; unchanged if no such user exists."""
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


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, from the system's cache to the disk.

    Without this, a rename can survive a power failure that the content does not.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EBADF):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def publish(partial: Path, target: Path) -> None:
    """Rename a complete file or folder to its final name, durably.

    A file replaces an existing one; for a folder see `replace_folder`.
    """
    _sync_tree(partial)
    os.replace(partial, target)
    sync(target.parent)


def replace_folder(partial: Path, target: Path) -> None:
    """Rename a complete folder to its final name, in place of an existing folder of that name.

    Either the old or the new folder has the name at any moment: the two are exchanged in one step
    where the system can do so. Elsewhere a kill between two renames leaves the old one as
    `.<name>.old`, and `temporary_sibling` restores it.
    """
    if not target.exists():
        publish(partial, target)
        return
    _sync_tree(partial)
    previous = partial
    if not _exchange(partial, target):
        previous = _previous(target)
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
        os.rename(partial, target)
    sync(target.parent)
    shutil.rmtree(previous)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _sync_tree(path: Path) -> None:
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    if len(paths) > 100 and hasattr(os, "sync"):
        os.sync()  # the whole system, in a fraction of the time that each file would take
        return
    for entry in paths:
        if not entry.is_symlink():
            sync(entry)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False if the system cannot: only Linux can."""
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return renameat2(working_directory, names[0], working_directory, names[1], exchange) == 0


def remove_partial_files(directory: Path) -> None:
    """Remove temporary files of killed processes; the caller must hold the directory's lock."""
    for path in list(directory.rglob(".*.writing*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# Errors of a disk, which TensorFlow and HDF5 quote in their messages but do not raise as OSError
# with a number.
DISK_ERRORS = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
)


def disk_errno(error: BaseException) -> int | None:
    """Return the error number of an exception that a disk caused, None for any other exception."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in DISK_ERRORS else None
    if isinstance(error, OSError) or type(error).__module__.startswith("tensorflow."):
        message = str(error)
        return next((code for code in DISK_ERRORS if os.strerror(code) in message), None)
    return None


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Add the path to disk errors in a block that do not name a file, such as a full disk."""
    try:
        yield
    except Exception as error:
        code = disk_errno(error)
        if code is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


# Descriptors of the directories that this process has locked, by device and inode.
held_locks: dict[tuple[int, int], int] = {}


def identity(folder: Path) -> tuple[int, int]:
    """Return device and inode, which a folder keeps when it is renamed."""
    state = folder.stat()
    return state.st_dev, state.st_ino


def lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a file or folder against other processes; closing the returned descriptor unlocks it.

    None if the file system or the operating system has no locks. Raises BlockingIOError if
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
        if (previous := _previous(folder)).is_dir():  # see `replace_folder`
            shutil.rmtree(previous) if folder.exists() else os.rename(previous, folder)
        with naming_file(folder):
            yield partial
    finally:
        if descriptor is None or _is_same(partial, descriptor):
            shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _locked_and_empty(partial: Path) -> tuple[Path, int | None]:
    """Create a folder, lock it and empty it; one with a unique name if there are no locks."""
    while True:
        try:
            partial.mkdir(exist_ok=True)
            descriptor = lock(partial, wait=True)
        except (FileExistsError, FileNotFoundError):
            continue  # another process has just renamed or removed it
        if descriptor is None:
            unique = Path(tempfile.mkdtemp(prefix=f"{partial.name}-", dir=partial.parent))
            unique.chmod(0o755)  # mkdtemp allows no other user, also after the rename
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

    Raises UserError if another process holds it. Does nothing if the file system or the
    operating system has no locks.
    """
    if identity(directory) in held_locks:
        return
    try:
        descriptor = lock(directory, wait=False)
    except BlockingIOError:
        raise UserError(f"another process is working on {directory}; wait until it ends") from None
    if descriptor is not None:
        held_locks[identity(directory)] = descriptor


def release_lock(directory: Path) -> None:
    """Release a directory that `acquire_lock` locked, if it did."""
    descriptor = held_locks.pop(identity(directory), None)
    if descriptor is not None:
        os.close(descriptor)


# Types that `read_json` checks: a number may be null where it is not defined.
NUMBER = (int, float, NoneType)


class MissingKey(UserError, KeyError):
    """A file of this package lacks a key. Also a KeyError, which templates treat as undefined."""

    __str__ = Exception.__str__  # KeyError shows its argument in quotes


class Record(dict[str, Any]):
    """A JSON object of a file; a missing key raises UserError that names the key and the file."""

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

    fields: the types of fields, as far as they are present: a type or several, [type] for a list, a
    mapping for an object, in which "*" matches all other keys. Raises UserError for content that
    is no JSON object or has a field of another type, and later for a missing key that is looked up.
    """
    try:
        content = json.loads(path.read_text(), object_hook=lambda found: Record(found, path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, "it contains no JSON object")
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


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path in the same folder, then publish it as `path`.

    The temporary file is removed if anything goes wrong.
    """
    partial = path.with_name(f".{path.name}.writing")
    try:
        with naming_file(path):
            write(partial)
            publish(partial, path)
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
    """Write a file that several processes may write at the same time, atomically.

    Each process locks a separate temporary file; unlocked ones are remains of killed processes, and
    are removed.
    """
    for remains in path.parent.glob(f".{path.name}-*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            descriptor = lock(remains, wait=False)
            if descriptor is not None:
                remains.unlink()
                os.close(descriptor)
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        partial, descriptor = Path(name), None
        try:
            with os.fdopen(handle, "w") as file, naming_file(path):
                descriptor = lock(partial, wait=True)
                file.write(text)
            os.chmod(partial, 0o644)  # mkstemp allows no other user to read it, such as TF Serving
            publish(partial, path)
            return
        except FileNotFoundError:
            continue  # another process removed it before it was locked
        finally:
            partial.unlink(missing_ok=True)
            if descriptor is not None:
                os.close(descriptor)
