"""Benchmarks: what is told is what was measured, and equal results are looked at. Nothing timed."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_tf import benchmark as bm
from cxr_tf import neighbors
from cxr_tf.errors import UserError
from cxr_tf.settings import Benchmark

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


def row(ours: list[float], theirs: list[float], **changed) -> bm.Row:
    told = {
        "job": "maps", "alternative": "other", "at_least": 3.0, "ours": bm.Timing(ours, 1.0),
        "theirs": bm.Timing(theirs, 2.0), "unit": "images/s", "count": 10, "same": True,
        "check": "equal",
    }  # fmt: skip
    return bm.Row(**{**told, **changed})


def test_ratio_is_of_each_round_and_theirs_over_ours() -> None:
    # The machine is slower in the third round, for both: no ratio changes.
    found = row([1.0, 2.0, 10.0], [4.0, 6.0, 50.0]).record()
    assert [found[k] for k in ("ratio", "ratio_lowest", "ratio_highest")] == [4, 3, 5]
    assert found["reached"]
    assert not row([1.0], [2.9]).record()["reached"]


def test_table_says_what_was_missed_and_what_is_not_the_same() -> None:
    about = bm.machine()
    rows = [
        row([2.0], [8.0]),
        row([2.0], [3.0], check="equal to 1e-3"),
        row([2.0], [9.0], same=False, check="they differ by 7"),
    ]
    text = bm.table(rows, [bm.Skipped("maps", "third", "not installed")], about)
    first, second, third = [x for x in text.splitlines() if x.startswith("| maps")]
    assert "| 5 images/s | 1.25 images/s | 4.00 (4.00 to 4.00) | 3 | equal |" in first
    assert "1.50" in second and "missed" in second and "missed" not in first
    assert "NOT THE SAME: they differ by 7" in third and "NOT" not in second
    assert "left out: maps, third: not installed" in text
    assert f"{about['cores']} cores" in text.splitlines()[0]


def test_ways_take_turns_and_the_warm_up_is_not_counted() -> None:
    called: list[str] = []

    def ours() -> None:
        called.append("a")

    def theirs() -> float:
        called.append("b")
        return 100.0 + called.count("b")

    timings = bm.in_turn({"ours": ours, "theirs": theirs}, 2)
    assert "".join(called) == "ba" + "ab" + "ba"
    # Seconds that a way tells itself are taken as they are; the first were those of the warm-up.
    assert timings["theirs"].seconds == [102.0, 103.0]
    assert len(timings["ours"].seconds) == 2


def test_one_job_from_the_command_line_to_the_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(neighbors, "NEIGHBOURS", (1, 7))
    monkeypatch.setattr(neighbors, "representations", lambda *_: ("standardised", "PCA"))
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
    assert "| KNN with choice of 16 settings, 200 x 16 |" in out

    with pytest.raises(UserError, match="exists"):
        bm.benchmark(Benchmark(jobs=("knn",), name="one", logs=str(tmp_path)))


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch) -> None:
    def interrupted(settings: Benchmark, place: Path) -> bm.Found:
        yield row([1.0], [4.0])
        raise KeyboardInterrupt

    monkeypatch.setitem(bm.JOBS, "knn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bm.benchmark(Benchmark(jobs=("knn",), name="cut", logs=str(tmp_path)))
    written = json.loads((tmp_path / "benchmark" / "cut.json").read_text())
    assert written["rows"][0]["ratio"] == 4 and not written["finished"]


def test_a_search_that_finds_something_else_is_not_called_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(neighbors, "NEIGHBOURS", (1, 7))
    monkeypatch.setattr(neighbors, "representations", lambda *_: ("as is",))
    right = neighbors.vote
    monkeypatch.setattr(neighbors, "vote", lambda *given: right(*given)[:, ::-1])
    settings = Benchmark(points=200, width=16, repeats=1)
    (found,) = bm.knn(settings, tmp_path)
    assert isinstance(found, bm.Row) and not found.same


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["speed"], "unknown job 'speed'; known: startup, knn"),
        (["knn", "--points", "3"], "--points must be at least 200, not 3"),
        (["knn", "--name", "a/b"], "--name 'a/b'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    given, says, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given, "--logs", str(tmp_path / "logs")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_phantoms_of_original_size_in_both_splits(tmp_path) -> None:
    from PIL import Image

    root = bm.radiographs(Benchmark(images=16), tmp_path)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpeg"))
    assert len(files) == 16
    assert {f.rsplit("/", 1)[0] for f in files} == {
        f"{s}/{c}" for s in ("train", "val") for c in ("NORMAL", "PNEUMONIA")
    }
    with Image.open(root / files[0]) as image:
        assert image.size == bm.ORIGINAL_SIZE and image.mode == "L"
        assert np.asarray(image).std() > 20
