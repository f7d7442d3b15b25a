"""Write files and folders atomically: each appears complete or not at all.

Content is written under a hidden temporary name in the same folder, synchronised to the disk, and
renamed. Whatever a killed process leaves behind has such a name, and the next process removes it.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cxr_tf.files.disk_errors import naming_file
from cxr_tf.files.locks import lock


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

    If the system can exchange two folders atomically (Linux), the name always refers to the old or
    the new folder. Elsewhere the folder is replaced by two renames; if the process is killed
    between them, the old folder remains as `.<name>.old`, and `temporary_sibling` restores it.
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
        os.sync()  # all disks at once, which is much faster than one file after another
        return
    for entry in paths:
        if not entry.is_symlink():
            sync(entry)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False if the system cannot (all but Linux)."""
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


@contextlib.contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder next to `folder`, to be filled and renamed within the block.

    The hidden folder is removed at the end unless it was renamed. What a killed process left in it
    is removed first. If another process is filling it, the call waits for that process, so check
    within the block whether `folder` exists by now. If the system has no locks, each process gets a
    hidden folder of its own.
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
    """Create a folder, lock it and empty it.

    If the system has no locks, create one with a unique name instead.
    """
    while True:
        try:
            partial.mkdir(exist_ok=True)
            descriptor = lock(partial, wait=True)
        except (FileExistsError, FileNotFoundError):
            continue  # another process has just renamed or removed it
        if descriptor is None:
            unique = Path(tempfile.mkdtemp(prefix=f"{partial.name}-", dir=partial.parent))
            unique.chmod(0o755)  # mkdtemp denies access to other users, even after the rename
            with contextlib.suppress(OSError):  # another process may be using it
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


def replace_text(path: Path, text: str) -> None:
    """Atomically write a file that several processes may write at the same time.

    Each process locks a separate temporary file; unlocked ones were left by killed processes, and
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
            # mkstemp denies access to other users, such as the one that runs TF Serving.
            os.chmod(partial, 0o644)
            publish(partial, path)
            return
        except FileNotFoundError:
            continue  # another process removed it before it was locked
        finally:
            partial.unlink(missing_ok=True)
            if descriptor is not None:
                os.close(descriptor)
