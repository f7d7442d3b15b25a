"""Verification of exports: every difference is reported, and no process imports the package."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.config import CheckServed, RunStudy
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv
from cxr_tf.runs import Run
from cxr_tf.serving.check_served import check_served
from cxr_tf.serving.runtimes import bare_process, cpp_comparison
from cxr_tf.serving.store import warm_up

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_served.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RunStudy:
    from tiny_study import run_tiny_study

    return run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")


@pytest.fixture
def classifier(study: RunStudy, tmp_path: Path) -> Run:
    """A copy of a finished run, which a test may change."""
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
def test_a_single_different_number_or_label_is_a_failure(
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
    assert f"{found['equal']} of {found['images']} test images reproduced" in done.stdout


def test_the_bare_process_does_not_import_the_package(classifier: Run, tmp_path: Path) -> None:
    files, predictions = tmp_path / "files", tmp_path / "predictions.npz"
    with tf.io.TFRecordWriter(str(files)) as writer:
        writer.write(warm_up.phantom_file())
    model = classifier.metrics["model"]["saved_model"]
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps([{"model": model, "files": str(files), "predictions": str(predictions)}])
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", bare_process.__file__, str(job)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and predictions.exists(), done.stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tensorflow" in imported and "cxr_tf" not in imported


def test_errors_leave_nothing_behind(classifier: Run, tmp_path: Path) -> None:
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


def test_every_signature_of_every_kind_of_model_agrees_on_the_cpp_runtime(
    study: RunStudy, tmp_path: Path
) -> None:
    runs = [Path(study.logs) / name for name in (
        "classifier/tiny-binary-vgg16", "knn/tiny-binary-knn", "autoencoder/tiny-autoencoder"
    )]  # fmt: skip
    settings = CheckServed(runs=tuple(map(str, runs)), logs=str(tmp_path), runtime="c++")
    metrics = check_served(settings).metrics
    assert metrics["agreed"]
    for model in metrics["models"]:
        assert model["runtime"] == "c++" and model["equal"] == model["images"] > 0
        assert max(model["c++"]["signatures"].values()) < 1e-5
        refusal = "INVALID_ARGUMENT: assertion failed: [image_bytes[1]: neither JPEG nor PNG"
        assert model["c++"]["refusal"].startswith(refusal)
        assert model["c++"]["warm_up"]
    assert {"embed/embedding", "occlusion/heatmap", "tensor/label"} <= set(
        metrics["models"][0]["c++"]["signatures"]
    )


def test_runtime_that_accepts_an_invalid_image_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_signatures = SimpleNamespace(signatures={})
    monkeypatch.setattr(cpp_comparison.tf.saved_model, "load", lambda _: no_signatures)
    task = {name: str(tmp_path / name) for name in ("images.npy", "sample.npz", "report.json")}
    task = {name.partition(".")[0]: path for name, path in task.items()}
    (tmp_path / "a.png").write_bytes(warm_up.phantom_file())
    np.save(task["images"], np.zeros((1, 8, 8, 3), np.float32))
    np.savez(task["sample"], unused=np.zeros(1))
    report = {"refusal": {"status": "OK", "message": ""}, "warm_up": [], "recorded": [],
              "threads_agree": True, "imports_tensorflow": False}  # fmt: skip
    Path(task["report"]).write_text(json.dumps(report))
    result = cpp_comparison.compare_runtimes(tmp_path, [str(tmp_path / "a.png")], task, 1e-4)
    assert not result["agreed"] and result["refusal"] == "OK: "
    assert "a check of the C++ runtime failed" in cpp_comparison.result_line(result)


def test_differences_are_relative_where_values_are_large() -> None:
    expected = np.array([[1.0, 200.0]], np.float32)
    shifted = np.array([[1.0, 200.02]], np.float32)
    assert cpp_comparison.difference(shifted, expected) == pytest.approx(1e-4, rel=1e-2)
    assert np.isnan(cpp_comparison.difference(expected[0], expected))
    assert np.isnan(cpp_comparison.difference(np.array([b"a"]), np.array([b"b"], object)))
    assert cpp_comparison.difference(np.array([b"a"]), np.array([b"a"], object)) == 0
