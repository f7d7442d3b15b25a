"""Exit codes and messages of the command line, unwritable output, and signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# TensorFlow, which every job imports first, is replaced: these tests do not need it.
SCRIPT = """
import logging, signal, sys, time, types
from dataclasses import dataclass
sys.modules["tensorflow"] = types.ModuleType("tensorflow")
from cxr_tf import cli

@dataclass
class Settings:
    seconds: float = 0.0

def job(settings):
    try:
        for line in range(3):
            logging.getLogger("cxr_tf").info("line %d \\u4e2d", line)
        logging.getLogger("benchmarks.load").info("benchmark")
        logging.getLogger("another.library").info("not shown")
        time.sleep(max(settings.seconds, 0))
    except KeyboardInterrupt:
        time.sleep(0.2)
        print("cleaned up", file=sys.stderr)
        raise
    if settings.seconds == -2:
        raise ConnectionRefusedError(111, "Connection refused")
    if settings.seconds < 0:
        raise OSError("Unable to write: error message = 'No space left on device'")

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
cli.run(Settings, job)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "job.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "job.py")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_on_stdout_gives_one_line(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device: standard output\n"


def test_closed_pipe_exits_silently(command: list[str]) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_job_runs_without_stdout(command: list[str]) -> None:
    script = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_unencodable_characters_are_escaped(command: list[str]) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=ascii_only)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == [f"line {k} \\u4e2d" for k in range(3)]


def test_log_lines_of_the_package_and_its_benchmarks_are_printed(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert "line 0" in done.stdout and done.stdout.endswith("benchmark\n")
    assert "not shown" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 3])
def test_signals_let_a_job_clean_up(command: list[str], number: signal.Signals, times: int) -> None:
    with subprocess.Popen(
        [*command, "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, the signal may be ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 0 中\n"  # it is at work
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.03)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert (
        lines[0] == "cleaned up" and lines[1].startswith("error: interrupted") and len(lines) == 2
    )


def test_signal_that_the_parent_ignores_stays_ignored(command: list[str]) -> None:
    """This is the situation under nohup when the terminal is closed."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    ignoring += "os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", ignoring, *command, "--seconds", "0.5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "line 0 中\n"
        process.send_signal(signal.SIGHUP)
        process.communicate()
    assert process.returncode == 0


def test_error_without_a_file_names_none(command: list[str]) -> None:
    done = subprocess.run([*command, "--seconds", "-2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: Connection refused\n")


def test_disk_error_without_a_number_gives_one_line(command: list[str]) -> None:
    done = subprocess.run([*command, "--seconds", "-1"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr
