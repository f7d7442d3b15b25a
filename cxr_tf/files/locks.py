"""Locks on files and folders between processes; the system releases them when a process ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cxr_tf.errors import UserError

# Descriptors of the directories that this process has locked, by device and inode.
held_locks: dict[tuple[int, int], int] = {}


def identity(folder: Path) -> tuple[int, int]:
    """Return the device and inode of a folder, which do not change when it is renamed."""
    state = folder.stat()
    return state.st_dev, state.st_ino


def lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a file or folder against other processes; closing the returned descriptor unlocks it.

    Returns None if the file system or the operating system has no locks. Raises BlockingIOError if
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
    """Hold the lock of a folder during a block, after waiting for it if necessary."""
    # A process that waited for a lock that it already holds would wait forever.
    descriptor = None if identity(folder) in held_locks else lock(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def acquire_lock(directory: Path) -> None:
    """Lock a directory for this process until it calls `release_lock` or ends.

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
    """Release the lock of a directory if this process holds it."""
    descriptor = held_locks.pop(identity(directory), None)
    if descriptor is not None:
        os.close(descriptor)
