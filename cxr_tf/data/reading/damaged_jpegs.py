"""Identify damaged JPEG files, because libjpeg's messages on stderr name no file."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

# How libjpeg's messages about damaged data begin.
MESSAGES = ("Corrupt JPEG data", "Premature end of JPEG file", "Invalid SOS parameters")


@contextlib.contextmanager
def libjpeg_messages() -> Iterator[list[str]]:
    """Collect libjpeg's messages on stderr; everything else is passed on at the end."""
    messages: list[str] = []
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        yield messages
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines(keepends=True):
                if line.startswith(MESSAGES):
                    messages.append(line.strip())
                else:
                    os.write(2, line.encode())


def damaged_files(
    paths: Sequence[str], decode: Callable[[Sequence[str]], object]
) -> dict[str, str]:
    """Return {path: message} of the files that libjpeg warns about, found by halving the list."""
    with libjpeg_messages() as messages:
        decode(paths)
    if not messages:
        return {}
    if len(paths) == 1:
        return {paths[0]: messages[0]}
    middle = len(paths) // 2
    return damaged_files(paths[:middle], decode) | damaged_files(paths[middle:], decode)
