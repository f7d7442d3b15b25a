"""The run directory: names, atomic files, resuming, and locks."""

import errno
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cxr_tf import files
from cxr_tf import runs as cxr_tf_runs
from cxr_tf.data.catalog import Catalog, Radiograph
from cxr_tf.errors import UserError

CATALOG = Catalog(
    findings=("normal", "viral"),
    source="somewhere",
    radiographs=(
        Radiograph("a/1.png", "normal", "p1", "train", "00"),
        Radiograph("a/2, 3.png", "viral", "p2", "test", "01"),
    ),
)


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    rate: float | None = None
    runs: tuple[str, ...] = ("a", "b")
    data: str = "somewhere"
    name: str = ""
    resume: bool = False
    allow_leakage: bool = False


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "", ".", "..", ".hidden", "-flag", "a b", "a\n", "x" * 101, "ä"]
)
def test_run_name_must_be_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="folder"):
        cxr_tf_runs.open_run(str(tmp_path), "job", name, Settings(), CATALOG)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_is_refused_or_resumed_with_the_same_settings(tmp_path: Path) -> None:
    def opened(catalog: Catalog = CATALOG, **changed) -> cxr_tf_runs.Run:
        return cxr_tf_runs.open_run(
            str(tmp_path), "job", "a", replace(Settings(), **changed), catalog
        )

    run = opened()
    config = run.config
    assert config["settings"]["runs"] == ["a", "b"] and config["resolved"] == {}
    assert config["data_fingerprint"] == CATALOG.fingerprint()
    assert config["packages"]["tensorflow"][0].isdigit()
    with pytest.raises(UserError, match="was interrupted"):
        opened()
    assert opened(resume=True).directory == run.directory
    # Neither the location of the data nor an explicit name changes the result.
    assert opened(resume=True, data="elsewhere", name="a").config == config

    relabelled = replace(CATALOG.radiographs[0], finding="viral")
    other = replace(CATALOG, radiographs=(relabelled, *CATALOG.radiographs[1:]))
    with pytest.raises(UserError, match=r"the data differ from those that .* was started with"):
        opened(other, resume=True)
    # Another seed draws other splits: the error must name the seed.
    with pytest.raises(UserError, match="--seed 0, not 1"):
        opened(other, resume=True, seed=1)

    run.write_metrics({"auroc": 1.0})
    with pytest.raises(UserError, match="is finished"):
        opened()
    assert opened(resume=True).finished
    assert run.config == config


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"rate": None}, {"rate": 0.1}, "without --rate:"),
        ({"rate": 0.1}, {"rate": None}, "with --rate 0.1:"),
        ({"rate": 0.1}, {"rate": 0.2}, "with --rate 0.1, not 0.2:"),
        ({"allow_leakage": False}, {"allow_leakage": True}, "without --allow-leakage:"),
        ({"allow_leakage": True}, {"allow_leakage": False}, "with --allow-leakage:"),
    ],
)
def test_error_on_resuming_states_the_flag_in_words(
    tmp_path: Path, before: dict, after: dict, words: str
) -> None:
    cxr_tf_runs.open_run(str(tmp_path), "job", "a", replace(Settings(), **before), CATALOG)
    again = replace(Settings(resume=True), **after)
    with pytest.raises(UserError, match=f"was started {re.escape(words)} resume it with the same"):
        cxr_tf_runs.open_run(str(tmp_path), "job", "a", again, CATALOG)


def test_restarted_run_has_an_empty_directory(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Quick:
        """Settings of a job that cannot be resumed."""

        data: str = "here"

    def opened() -> cxr_tf_runs.Run:
        return cxr_tf_runs.open_run(str(tmp_path), "job", "a", Quick(), CATALOG)

    left = opened().directory / "heatmaps" / "of-before.png"
    left.parent.mkdir()
    left.touch()
    again = opened()
    assert [p.name for p in again.directory.iterdir()] == ["config.json"]
    again.write_metrics({"auroc": 1.0})
    with pytest.raises(UserError, match="is finished"):
        opened()


def test_new_setting_prevents_resuming_an_old_run(tmp_path: Path) -> None:
    run = cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(), CATALOG)
    config = run.config
    del config["settings"]["seed"]
    files.write_json(run.directory / "config.json", config)
    with pytest.raises(UserError, match="by a version of cxr_tf without --seed"):
        cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(resume=True), CATALOG)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_write_atomically_keeps_the_old_file_on_errors(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "metrics.json"

    def half(beside: Path) -> None:
        beside.write_text('{"auroc": 0.')
        raise error

    for before in (None, '{"auroc": 0.5}\n'):
        if before:
            path.write_text(before)
        with pytest.raises(type(error)):
            files.write_atomically(path, half)
        assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])
    with pytest.raises(FileNotFoundError):
        files.write_json(tmp_path / "none" / "x.json", {})


def test_json_writes_null_for_non_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = {
        "nan": math.nan,
        "deep": [{"inf": np.float32(np.inf)}, (np.int64(3), np.bool_(True))],
        "array": np.array([1.5, np.nan]),
        2: Path("a/b"),
    }
    files.write_json(path, content)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "nan": None,
        "deep": [{"inf": None}, [3, True]],
        "array": [1.5, None],
        "2": "a/b",
    }
    with pytest.raises(TypeError):
        files.write_json(path, {"what": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_predictions_csv_round_trip(tmp_path: Path) -> None:
    import csv

    probabilities = np.array([[0.25, 0.75], [0.123456789, 0.876543211]], np.float32)
    run = cxr_tf_runs.Run(tmp_path)
    run.write_predictions(
        "test", CATALOG, np.array([0, 1]), probabilities, np.array([1, 1]), ("normal", "pneumonia")
    )
    with (tmp_path / "predictions-test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == CATALOG.paths
    assert [(r["label"], r["predicted"]) for r in rows] == [
        ("normal", "pneumonia"),
        ("pneumonia", "pneumonia"),
    ]
    read = np.array([[float(r["normal"]), float(r["pneumonia"])] for r in rows])
    np.testing.assert_allclose(read, probabilities, rtol=1e-7)


def test_resolved_settings_are_recorded(tmp_path: Path) -> None:
    given = Settings()
    run = cxr_tf_runs.open_run(str(tmp_path), "job", "a", given, CATALOG, replace(given, rate=0.1))
    assert run.config["settings"]["rate"] is None
    assert run.config["resolved"] == {"rate": 0.1}


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_record_is_a_user_error(tmp_path: Path, content: str) -> None:
    for name in ("metrics.json", "config.json"):
        (tmp_path / name).write_text(content)
    run = cxr_tf_runs.Run(tmp_path)
    for read in (lambda: run.metrics, lambda: run.config):
        with pytest.raises(UserError, match="is damaged"):
            read()


def test_exclusive_lock_waits_for_another_process(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no such locks here")
    code = (
        "import sys; from cxr_tf import files; from pathlib import Path\n"
        "with files.exclusive_lock(Path(sys.argv[1])):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    order: list[str] = []

    def second() -> None:
        with files.exclusive_lock(tmp_path):
            order.append("second")

    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
        other.stdin.close()
        waiting.join(30)
    assert order == ["first", "second"]


def test_locked_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no such locks here")
    code = (
        "import sys; from cxr_tf import files; from pathlib import Path\n"
        "files.acquire_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    run = cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(), CATALOG)
    files.release_lock(run.directory)
    before = sorted(p.name for p in run.directory.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", code, run.directory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        for resume in (True, False):
            with pytest.raises(UserError, match="another process is working on"):
                cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(resume=resume), CATALOG)
        assert sorted(p.name for p in run.directory.iterdir()) == before
        other.stdin.close()
    resumed = cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(resume=True), CATALOG)
    # The same process may open it twice; once it is finished, the lock is released.
    cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(resume=True), CATALOG)
    resumed.write_metrics({"auroc": 1.0})
    assert files.identity(resumed.directory) not in files.held_locks


def test_resuming_a_finished_run_removes_what_a_kill_left(tmp_path: Path) -> None:
    run = cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(), CATALOG)
    run.write_metrics({"test": {"auroc": 1.0}})
    (run.directory / "figures").mkdir()
    for name in ("best.npz", "checkpoint.npz", ".best.npz.writing", "figures/.roc.png.writing"):
        (run.directory / name).touch()
    cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(resume=True), CATALOG)
    kept = sorted(p.name for p in run.directory.rglob("*"))
    assert kept == ["config.json", "figures", "metrics.json"]


def test_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job" / "a").mkdir(parents=True)
    thesis = tmp_path / "job" / "a" / "thesis.docx"
    thesis.touch()
    with pytest.raises(UserError, match="is not a run: choose another --name"):
        cxr_tf_runs.open_run(str(tmp_path), "job", "a", Settings(), CATALOG)
    assert thesis.exists()


def test_interrupted_emptying_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    run = cxr_tf_runs.start_run(tmp_path / "a", {"settings": {}})
    for name in ("figures", "more"):
        (run.directory / name).mkdir()
    (run.directory / "old.csv").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cxr_tf_runs.start_run(run.directory, {"settings": {}})
    assert (run.directory / "config.json").exists()  # so the next process empties it again
    cxr_tf_runs.start_run(run.directory, {"settings": {}})
    assert [p.name for p in run.directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("path,label\n1.png", "is damaged"), ("path,normal\n1.png,high\n", "is damaged")],
)
def test_damaged_predictions_are_a_user_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "predictions-test.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        cxr_tf_runs.Run(tmp_path).predictions("test")
