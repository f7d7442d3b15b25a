"""A small fault campaign: kills, invalid records, and a hostile server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import Campaign, main

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_kill_before_every_file_operation_leaves_no_trace() -> None:
    done = subprocess.run(  # in a process of its own, which has not loaded TensorFlow
        [sys.executable, "-m", "benchmarks.reliability", "--parts", "files"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal to the undisturbed job | 0 |") == 4


@pytest.mark.parametrize("part", ["records", "server"])
def test_faults_end_in_one_line(part: str) -> None:
    rows = main(Campaign(parts=(part,)))
    assert len(rows) >= 3 and not any(row.failed for row in rows)
