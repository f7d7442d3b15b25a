"""Paths as users give them, folders that appear whole, and locks on folders."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def expanded(path: str) -> Path:
    """The path with `~` and `~name` in full; as it is where there is nobody of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a folder may be called so
        return Path(path)


def short_stem(path: Path) -> str:
    """The file's name without its ending, cut so that a name made of it fits into 255 bytes."""
    return os.fsencode(path.stem)[:150].decode(errors="ignore")


# Descriptors of the folders that this process keeps, by device and inode (see `runs.claim`).
held: dict[tuple[int, int], int] = {}


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
def turn(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block with the same folder."""
    # What this process keeps anyway it would wait for in vain.
    descriptor = None if identity(folder) in held else lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
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
