"""Waiting for workers: a missing or lost worker ends the process, even inside C code."""

import signal
import socket
import subprocess
import sys
import time

# Like TensorFlow's wait, this sleep holds the interpreter lock.
WAIT = """
import ctypes, signal, sys
from cxr_tf.training.connection_watchdog import connection_watchdog
before = signal.getsignal(signal.SIGINT)
with connection_watchdog([sys.argv[1]], float(sys.argv[2])):
    ctypes.PyDLL(None).sleep(int(sys.argv[3]))
assert signal.getsignal(signal.SIGINT) is before
print("connected")
"""


def waiting(address: str, timeout: float, seconds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WAIT, address, str(timeout), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_missing_worker_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = address_of(listener)
    output, error = waiting(address, timeout=1, seconds=60).communicate(timeout=40)
    assert error.startswith(f"error: {address} did not appear within 1 s")
    assert "--worker-timeout" in error and output == ""


def test_exit_code_of_a_missing_worker_is_that_of_a_user_error() -> None:
    process = waiting("127.0.0.1:1", timeout=0, seconds=60)
    process.communicate(timeout=40)
    assert process.returncode == 2


def test_lost_worker_is_named() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    address = address_of(listener)
    process = waiting(address, timeout=600, seconds=120)
    listener.accept()  # the watchdog has seen it
    time.sleep(1)
    listener.close()
    _, error = process.communicate(timeout=60)
    assert error.startswith(f"error: {address} was killed") and process.returncode == 2


def test_connected_worker_continues() -> None:
    process = waiting("127.0.0.1:1", timeout=600, seconds=1)
    output, error = process.communicate(timeout=40)
    assert (process.returncode, output, error) == (0, "connected\n", "")


def test_interrupt_ends_the_wait() -> None:
    process = waiting("127.0.0.1:1", timeout=600, seconds=60)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 2
