"""Paths as users give them, folders that appear whole, and locks on folders."""

import contextlib
import os
import shutil
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
    descriptor = lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty hidden folder beside `folder`, to be filled, and renamed at the end of the block.

    Where it is not, it goes. What a killed process left of one is cleared away first, and a process
    that is filling one is waited for: look for `folder` again then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.writing")
    while True:
        partial.mkdir(exist_ok=True)
        descriptor = lock(partial, wait=True)
        # Whoever had it has renamed or removed it, perhaps.
        if descriptor is None or (partial.exists() and _same(descriptor, partial)):
            break
        os.close(descriptor)
    try:
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield partial
    finally:
        if descriptor is None or (partial.exists() and _same(descriptor, partial)):
            shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _same(descriptor: int, folder: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), folder.stat())
