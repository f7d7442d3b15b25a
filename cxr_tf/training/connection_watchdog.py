"""Stop a worker that waits in vain for the others while TensorFlow connects them.

    python connection_watchdog.py PID TIMEOUT ADDRESS...

TensorFlow connects the workers in C++, without a limit and with Python's interpreter lock held, so
that neither a thread nor a Python signal handler of that process can end the wait. This separate
process can. It ends silently when its standard input is closed, which the worker does once it is
connected.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

# Seconds between two looks at the other workers.
INTERVAL = 2.0


@contextlib.contextmanager
def connection_watchdog(others: Sequence[str], timeout: float) -> Iterator[None]:
    """End this process with exit code 2 if the workers are not connected within `timeout` seconds.

    It also ends soon after another worker has appeared and disappeared again. others: addresses,
    host:port. Only in the main thread.
    """
    # The handler is C's `_exit`, because Python's own handlers need the interpreter lock. It
    # receives the number of SIGINT, 2, which is also the exit code for a mistake of the user.
    before = signal.getsignal(signal.SIGINT)
    libc = ctypes.CDLL(None)
    libc.signal(int(signal.SIGINT), ctypes.cast(libc._exit, ctypes.c_void_p))
    watchdog = subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid()), str(timeout), *others],
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        watchdog.wait()
        signal.signal(signal.SIGINT, before)


def watch(pid: int, timeout: float, others: Sequence[str]) -> None:
    """Interrupt the process `pid` with an error message, or return when it is connected."""
    end = time.monotonic() + timeout
    seen: set[str] = set()
    silent: set[str] = set()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        listening = {address for address in others if is_listening(address)}
        # Twice in a row, because a busy machine may miss one connection.
        lost = sorted(silent - listening)
        seen |= listening
        silent = seen - listening
        if lost:
            error = (
                f"{', '.join(lost)} was killed, or stopped because of an error: start all workers "
                "again"
            )
        elif time.monotonic() > end:
            missing = ", ".join(sorted(set(others) - listening)) or "a worker"
            error = (
                f"{missing} did not appear within {timeout:.0f} s: start all workers in TF_CONFIG, "
                "or allow more time with --worker-timeout"
            )
        else:
            continue
        print(f"error: {error}", file=sys.stderr, flush=True)
        os.kill(pid, signal.SIGINT)
        return


def is_listening(address: str) -> bool:
    """Return whether a process accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
