"""Exported models asked again: that a difference is seen, and that the process is a bare one."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from cxr_tf.config import CheckServed, RunStudy
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv
from cxr_tf.runs import Run
from cxr_tf.serving.check_served import check_served
from cxr_tf.serving.runtimes import bare_process

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_served.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RunStudy:
    from tiny_study import run_tiny_study

    return run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")


@pytest.fixture
def classifier(study: RunStudy, tmp_path: Path) -> Run:
    """A finished run in a place of its own, where a test may change it."""
    folder = tmp_path / "logs" / "classifier" / "tiny-binary-vgg16"
    return Run(shutil.copytree(Path(study.logs) / "classifier" / folder.name, folder))


def change(run: Run, row: int, column: str, value: str) -> None:
    file = run.directory / "predictions-test.csv"
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    rows[row + 1][rows[0].index(column)] = value
    write_csv(file, rows[0], rows[1:])


@pytest.mark.parametrize(
    "column, value", [("pneumonia", "0.31415"), ("predicted", "something else")]
)
def test_one_number_or_label_that_differs_is_seen(
    classifier: Run, tmp_path: Path, column: str, value: str
) -> None:
    change(classifier, 3, column, value)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", str(classifier.directory), "--logs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (found,) = Run(tmp_path / "served" / classifier.directory.name).metrics["models"]
    assert found["equal"] == found["images"] - 1
    assert f"{found['equal']} of {found['images']} test images as measured" in done.stdout


def test_the_process_imports_nothing_of_ours(classifier: Run, tmp_path: Path) -> None:
    files, answers = tmp_path / "files", tmp_path / "answers.npz"
    image = tf.io.encode_png(tf.zeros([64, 64, 1], tf.uint8)).numpy()
    with tf.io.TFRecordWriter(str(files)) as writer:
        writer.write(image)
    model = classifier.metrics["model"]["saved_model"]
    job = tmp_path / "job.json"
    job.write_text(json.dumps([{"model": model, "files": str(files), "answers": str(answers)}]))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", bare_process.__file__, str(job)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and answers.exists(), done.stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tensorflow" in imported and "cxr_tf" not in imported


def test_mistakes_are_told_and_leave_nothing(classifier: Run, tmp_path: Path) -> None:
    logs = tmp_path / "mine"

    def check(*runs: Path) -> None:
        check_served(CheckServed(runs=tuple(map(str, runs)), logs=str(logs)))

    with pytest.raises(UserError, match="no run to check"):
        check()
    with pytest.raises(UserError, match="not a finished run"):
        check(tmp_path / "nowhere")
    metrics = classifier.metrics
    metrics["model"]["saved_model"] = str(tmp_path / "deleted")
    classifier.write_metrics(metrics)
    with pytest.raises(UserError, match="deleted, which does not exist"):
        check(classifier.directory)
    (classifier.directory / "predictions-test.csv").unlink()
    with pytest.raises(UserError, match="no exported model with predictions"):
        check(classifier.directory)
    assert not logs.exists()
