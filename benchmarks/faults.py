"""Inject faults: kills before a file operation, flipped bits, a full disk, invalid records.

A job is a function without arguments that works in the current directory. Jobs run in forked
processes, so that a killed or aborting job does not affect this process.
"""

import contextlib
import copy
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cxr_tf.errors import UserError

Job = Callable[[], Any]

# How a job can end.
DONE, ONE_LINE, TRACEBACK, KILLED = "done", "one line", "traceback", "killed"
EXIT_CODES = {0: DONE, 2: ONE_LINE, 3: TRACEBACK}

# Audit events of operations that change the file system.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.truncate"}


def run(job: Job, *, kill_before: int = 0, log: Path | None = None) -> str:
    """Run a job in a child process, and return how it ended.

    kill_before: send SIGKILL before the file operation with this number, counted from 1; 0: never.
    log: file for the output of the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if kill_before:
                arm_kill(kill_before)
            os._exit(exit_code(job))
        finally:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return KILLED if name == "SIGKILL" else f"abort ({name})"
    return EXIT_CODES.get(os.WEXITSTATUS(status), "exit")


def exit_code(job: Job) -> int:
    """Run a job; return 0, or 2 for an error that `cxr_tf.cli` prints in one line, or else 3."""
    try:
        job()
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr, flush=True)
        return 2 if error.errno is not None and error.filename is not None else 3
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 3


def arm_kill(number: int) -> None:
    """Kill this process before its file operation of the given number, counted from 1."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            changes = bool(written) and not str(path).startswith(("/dev/", "/proc/"))
        elif event == "ctypes.dlsym":
            changes = arguments[1] == "renameat2"  # exchanges two names
        else:
            changes = event in CHANGES
        count += changes
        if changes and count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@contextlib.contextmanager
def working_directory() -> Iterator[Path]:
    """Work in an empty temporary directory for the duration of a block."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        os.chdir(directory)
        try:
            yield Path(directory)
        finally:
            os.chdir(before)


def hidden_files(directory: Path) -> list[str]:
    """Return the hidden files below a directory, which are leftover temporary files."""
    return sorted(str(p.relative_to(directory)) for p in directory.rglob(".*"))


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one random bit flipped."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def wrong_records(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name of the change, changed JSON), for each key removed and each value retyped."""
    for path in _paths(content):
        for change in ("removed", "retyped"):
            changed = copy.deepcopy(content)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if change == "removed":
                del parent[path[-1]]
            else:
                value = parent[path[-1]]
                parent[path[-1]] = 7 if isinstance(value, (str, list, dict)) else "text"
            yield f"{'/'.join(map(str, path))} {change}", changed


def _paths(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*before, key)
            yield from _paths(value, (*before, key))


@contextlib.contextmanager
def limited_disk(size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes on the current directory; needs root and Linux."""
    import subprocess

    here = Path.cwd()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(here)]
    subprocess.run(mount, check=True, capture_output=True)
    os.chdir(here)  # into the new file system
    try:
        yield
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", str(here)], check=True)
        os.chdir(here)
