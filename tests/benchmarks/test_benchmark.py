"""Tests of running benchmarks: the file of the results, interruptions and mistakes."""

import functools
import json
import runpy
import sys
from pathlib import Path

import pytest
from benchmark_rows import row

from benchmarks import benchmark, embeddings, reading
from benchmarks.config import Benchmark
from benchmarks.measurement import Cost, Memory, Results, Row
from cxr_tf.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def test_command_line_runs_a_job_and_writes_its_file(tmp_path, monkeypatch, capsys) -> None:
    few = functools.partial(embeddings.knn, neighbours=(1, 7))
    monkeypatch.setitem(benchmark.JOBS, "knn", few)
    given = ["knn", "--points", "200", "--width", "16", "--repeats", "1", "--name", "one"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given, "--logs", str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    file = tmp_path / "benchmark" / "one.json"
    written = json.loads(file.read_text())
    (found,) = written["rows"]
    assert found["same"], found["check"]
    assert len(found["ours"]["seconds"]) == len(found["theirs"]["seconds"]) == 1
    assert found["ratio"] == found["theirs"]["seconds"][0] / found["ours"]["seconds"][0]
    assert written["machine"]["packages"]["tensorflow"][0].isdigit()
    assert written["finished"]
    assert written["load_before"] >= 0 and written["settings"]["points"] == 200
    assert "| KNN, selection among 24 settings, 200 x 16 |" in out

    with pytest.raises(UserError, match="exists"):
        benchmark.benchmark(Benchmark(jobs=("knn",), name="one", logs=str(tmp_path)))


def test_start_up_is_measured_for_every_script(tmp_path, monkeypatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(reading.subprocess, "run", lambda command, **_: called.append(command[1]))
    (found,) = reading.startup(Benchmark(repeats=1), tmp_path)
    assert isinstance(found, Row)
    assert set(map(str, SCRIPT.parent.glob("*.py"))) == set(called) - {"-c"}


def test_interrupted_run_keeps_its_results(tmp_path, monkeypatch) -> None:
    def interrupted(settings: Benchmark, place: Path) -> Results:
        yield row([1.0], [4.0])
        yield Memory("training", "ours", 3500, "MB", 3000)
        yield Cost("t-SNE", "points", [200, 400], [1.0, 2.0])
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark.JOBS, "knn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(Benchmark(jobs=("knn",), name="cut", logs=str(tmp_path)))
    written = json.loads((tmp_path / "benchmark" / "cut.json").read_text())
    assert written["rows"][0]["ratio"] == 4 and not written["finished"]
    assert written["memory"][0]["reached"] is False
    assert written["costs"][0]["slope"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["speed"], "unknown job 'speed'; known: bounds, startup, knn"),
        (["knn", "--points", "3"], "--points must be at least 200, not 3"),
        (["scaling", "--sizes", "100", "400"], "--sizes must be at least 200, not 100"),
        (["scaling", "--sizes", "400", "400"], "each larger than the one before"),
        (["knn", "--name", "a/b"], "--name 'a/b'"),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(
    given, says, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given, "--logs", str(tmp_path / "logs")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "logs").exists()
