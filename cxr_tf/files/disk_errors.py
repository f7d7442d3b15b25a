"""Disk errors, such as a full disk, with the path that they concern."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Numbers of disk errors. TensorFlow and HDF5 quote such an error in a message, but do not raise an
# OSError with its number.
DISK_ERRORS = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
)


def disk_errno(error: BaseException) -> int | None:
    """Return the error number of an exception caused by a disk; None for any other exception."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in DISK_ERRORS else None
    if isinstance(error, OSError) or type(error).__module__.startswith("tensorflow."):
        message = str(error)
        return next((code for code in DISK_ERRORS if os.strerror(code) in message), None)
    return None


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Add the path to disk errors in the block that do not name a file, as for a full disk."""
    try:
        yield
    except Exception as error:
        code = disk_errno(error)
        if code is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
