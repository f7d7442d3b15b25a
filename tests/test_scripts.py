"""Tests of the scripts as users run them: flags, files and exit codes."""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.sources.phantoms import write_phantoms

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = ["--image-size", "64", "--epochs", "1", "--batch-size", "16", "--bootstrap-samples", "20"]


def run(script, *arguments, capsys=None):
    """Run a script in this process (TensorFlow is imported once); return exit code, out, err."""
    before = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    out, err = capsys.readouterr() if capsys else ("", "")
    return code, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with phantoms and the comparison of three backbones on them.

    Small backbones have the names of the real ones, which `make quickstart` uses. They are trained
    in bfloat16; evaluation and export are in float32 nevertheless.
    """
    from tiny_backbone import in_place_of

    folder = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_phantoms(folder / "xrays", count=80, size=64, seed=3)
        with in_place_of("vgg16", "resnet50", "alexnet"):
            code, _, _ = run(
                "compare_backbones.py",
                *("--data", "xrays", "--name", "tiny", *TINY),
                *("--vgg16-weights", "none", "--resnet50-weights", "none"),
                *("--precision", "mixed_bfloat16"),
            )
        assert code == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_help_of_every_script_needs_no_tensorflow():
    scripts = sorted(p.name for p in SCRIPTS.glob("*.py"))
    assert "train_classifier.py" in scripts
    code = (
        "import runpy, sys\n"
        "for script in sys.argv[1:]:\n"
        "    path, sys.argv = script, [script, '--help']\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit as stop: assert not stop.code, script\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *[str(SCRIPTS / s) for s in scripts]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(scripts)


def test_comparison_writes_its_documented_files(here):
    metrics = json.loads((here / "logs/compare/tiny/metrics.json").read_text())
    assert set(metrics["models"]) == {"tiny-resnet50", "tiny-vgg16", "tiny-alexnet"}
    losses = {n: m["model"]["selection_loss"] for n, m in metrics["models"].items()}
    assert metrics["chosen"] == min(losses, key=losses.get)
    assert set(metrics["paired_tests"]) == set(metrics["models"]) - {metrics["chosen"]}
    for name in metrics["models"]:
        run_folder = here / "logs/classifier" / name
        assert (run_folder / "model.keras").exists()
        assert not list(run_folder.glob("*.npz"))  # the checkpoint is gone with the last epoch
        assert [p.name for p in (here / "saved_models" / name).iterdir()] == ["1"]
        drawn = {p.stem for p in (run_folder / "figures").iterdir()}
        assert {"roc-test", "precision_recall-test", "confusion-test", "reliability-test"} <= drawn
        assert {"training_curves", "most_wrong-test"} <= drawn
    assert (here / "logs/compare/tiny/figures/comparison.png").exists()


def test_finished_comparison_is_kept_and_refused_without_resume(here, capsys):
    arguments = ("--data", "xrays", "--name", "tiny", *TINY)
    weights = ("--vgg16-weights", "none", "--resnet50-weights", "none")
    weights += ("--precision", "mixed_bfloat16")
    before = (here / "logs/compare/tiny/metrics.json").stat().st_mtime_ns
    code, _, err = run("compare_backbones.py", *arguments, *weights, capsys=capsys)
    assert code == 2 and "exists" in err and len(err.splitlines()) == 1
    code, out, _ = run("compare_backbones.py", *arguments, *weights, "--resume", capsys=capsys)
    assert code == 0 and "tiny-alexnet" in out
    assert (here / "logs/compare/tiny/metrics.json").stat().st_mtime_ns == before
    assert [p.name for p in (here / "saved_models/tiny-vgg16").iterdir()] == ["1"]


def test_finished_runs_are_compared(here, capsys):
    folders = [f"logs/classifier/tiny-{b}" for b in ("vgg16", "alexnet")]
    code, _, _ = run("compare_backbones.py", "--runs", *folders, "--name", "two", capsys=capsys)
    assert code == 0
    two = json.loads((here / "logs/compare/two/metrics.json").read_text())
    assert set(two["models"]) == {"tiny-vgg16", "tiny-alexnet"}
    config = json.loads((here / "logs/compare/two/config.json").read_text())["settings"]
    assert (config["data"], config["task"]) == ("xrays", "binary")
    for second, message in (
        ("logs/compare/tiny", "another job"),
        ("copies/tiny-vgg16", "two of the runs are called tiny-vgg16"),
    ):
        if not Path(second).exists():
            shutil.copytree(folders[0], second)
        mistake = ("--runs", folders[0], second, "--name", "three")
        code, _, err = run("compare_backbones.py", *mistake, capsys=capsys)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not Path("logs/compare/three").exists()


def test_evaluate_gives_the_measured_scores(here, capsys):
    import tensorflow as tf

    from cxr_tf.data import batches, decoding
    from cxr_tf.data.loading import open_catalog

    model = "saved_models/tiny-alexnet"
    code, output, _ = run("evaluate.py", "--model", model, "--data", "xrays", "--split", "test",
                     "--bootstrap-samples", 20, "--name", "again", "--shifts",
                     capsys=capsys)  # fmt: skip
    assert code == 0
    assert (
        "framed lower" in output and (here / "logs/evaluate/again/figures/shifts-test.png").exists()
    )
    written = json.loads((here / "logs/evaluate/again/metrics.json").read_text())
    again, shifted = written["test"], written["shifts"]
    first = json.loads((here / "logs/classifier/tiny-alexnet/metrics.json").read_text())["test"]
    for metric in ("auroc", "accuracy", "brier", "loss"):
        assert again[metric] == pytest.approx(first[metric], abs=1e-4)
    assert shifted.keys() == SHIFTS.keys()
    assert all(abs(shifted[name]["loss"] - first["loss"]) > 1e-6 for name in SHIFTS)
    # One shift by hand, of pixels instead of files.
    catalog = open_catalog("xrays")
    catalog = catalog.take(catalog.rows("test"))
    images, _ = decoding.load_images(catalog.paths, 64)
    answer = tf.saved_model.load(f"{model}/1").signatures["tensor"]
    labels = answer(images=batches.to_rgb(SHIFTS["darker"](images)))["label"].numpy()
    sick = catalog.labels("binary") == 1
    assert shifted["darker"]["recall"] == pytest.approx(np.mean(labels[sick] == b"pneumonia"))
    assert shifted["darker"]["specificity"] == pytest.approx(np.mean(labels[~sick] == b"normal"))


def test_predict_gives_the_measured_probabilities(here, capsys):
    with (here / "logs/classifier/tiny-resnet50/predictions-test.csv").open() as file:
        measured = {r["path"]: r for r in csv.DictReader(file)}
    code, _, _ = run("predict.py", "--model", "saved_models/tiny-resnet50/1", "--images",
                     *measured, "--output", "out.csv", capsys=capsys)  # fmt: skip
    assert code == 0
    with (here / "out.csv").open() as file:
        predicted = list(csv.DictReader(file))
    assert [r["path"] for r in predicted] == list(measured)
    difference = [
        float(r["pneumonia"]) - float(measured[r["path"]]["pneumonia"]) for r in predicted
    ]
    assert np.abs(difference).max() < 1e-4
    assert np.ptp([float(r["pneumonia"]) for r in predicted]) > 1e-3, "else all look alike"
    assert [r["label"] for r in predicted] == [m["predicted"] for m in measured.values()]
    code, _, err = run("predict.py", "--model", "saved_models/tiny-resnet50/1", "--images",
                       "xrays/test", "--output", "out.csv", capsys=capsys)  # fmt: skip
    assert code == 2 and "--overwrite" in err


def mistakes():
    train = ("train_classifier.py", "--weights", "none", *TINY)
    yield "no such folder", (*train, "--data", "nowhere")
    yield "neither a folder nor", (*train, "--data", "out.txt")
    yield "no class folder", (*train, "--data", "empty")
    yield "letters, digits", (*train, "--data", "xrays", "--name", "a/b")
    yield "at least 64", (*train, "--data", "xrays", "--image-size", "32")
    yield "operating point", (*train, "--data", "xrays", "--operating-point", "best")
    yield "0 to 7", (*train, "--data", "xrays", "--backbone", "alexnet", "--trainable-blocks", "9")
    yield "no such weights file", (*train, "--data", "xrays", "--weights", "missing.h5")
    yield (
        "no ImageNet weights",
        (*(*train, "--data", "xrays", "--backbone", "alexnet", "--weights", "imagenet"),),
    )
    yield "no such model", ("evaluate.py", "--model", "saved_models/nothing")
    yield "contains neither a SavedModel", ("evaluate.py", "--model", "xrays")
    yield "no such image", ("predict.py", "--model", "saved_models/tiny-vgg16", "--images", "x.png")
    yield (
        "neither JPEG nor PNG",
        (*("predict.py", "--model", "saved_models/tiny-vgg16", "--images", "text.jpeg"),),
    )
    yield (
        ".csv or .json",
        (*("predict.py", "--model", "m", "--images", "text.jpeg", "--output", "x.xls"),),
    )
    predict = ("predict.py", "--model", "saved_models/tiny-vgg16", "--images", "xrays/test")
    evaluate = ("evaluate.py", "--model", "saved_models/tiny-vgg16", "--data", "xrays")
    fit_knn = ("fit_knn.py", "--classifier", "logs/classifier/tiny-vgg16")
    yield "--batch-size must be at least 1, not -3", (*predict, "--batch-size", "-3")
    yield "--timeout must be above 0, not nan", (*predict, "--timeout", "nan")
    yield "--batch-size must be at least 1, not 0", (*evaluate, "--batch-size", "0")
    yield "--bootstrap-samples must be at least 1, not -2", (*evaluate, "--bootstrap-samples", "-2")
    yield "--augmentation must be at least 0, not nan", (*train, "--augmentation", "nan")
    yield "--learning-rate must be above 0, not inf", (*train, "--learning-rate", "inf")
    yield "--seed must be at least 0, not -1", (*fit_knn, "--seed", "-1")
    for script in ("train_classifier.py", "compare_backbones.py", "train_autoencoder.py"):
        yield "--seed must be at least 0, not -1", (script, "--data", "xrays", "--seed", "-1")
    yield "--seed must be at most", ("run_study.py", "--data", "xrays", "--seed", str(2**32))
    yield "--seed must be at least 0, not -1", ("prepare_data.py", "--out", "x", "--seed", "-1")
    yield "not a run directory", ("compare_backbones.py", "--runs", "xrays")


@pytest.mark.parametrize(
    "message, arguments", mistakes(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_mistake_gets_one_line_and_leaves_nothing(here, capsys, message, arguments):
    (here / "out.txt").write_text("text")
    (here / "text.jpeg").write_text("this is no image")
    (here / "empty").mkdir(exist_ok=True)
    before = sorted(p for p in here.rglob("*"))
    code, _, err = run(*arguments, capsys=capsys)
    lines = [line for line in err.splitlines() if line]
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], err
    assert sorted(p for p in here.rglob("*")) == before


def test_wrong_command_line_is_explained_and_leaves_nothing(here, capsys):
    """The library that parses flags prints its message in a box of several lines."""
    before = sorted(here.rglob("*"))
    code, _, err = run("train_classifier.py", "--backbone", "vgg19", capsys=capsys)
    assert code == 2
    assert "invalid choice 'vgg19' for argument '--backbone'" in err and "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_error_of_a_real_process_is_one_line(here):
    # As from a user's shell, where TensorFlow's log level is not set.
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, SCRIPTS / "train_classifier.py", "--data", "nowhere"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such folder or file: nowhere") and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_script_reuses_freed_memory():
    """Repeated arrays of 64 MB are not allocated from the system each time."""
    job = """
import dataclasses, resource
from cxr_tf import cli

@dataclasses.dataclass(frozen=True)
class Nothing:
    pass

def job(_):
    import tensorflow as tf
    x = tf.zeros([16, 1024, 1024])
    for _ in range(3):
        x = x + 1.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        x = x + 1.0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

cli.run(Nothing, job)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPU_ALLOCATOR_USE_BFC"}
    done = subprocess.run(
        [sys.executable, "-c", job], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    pages = 16 * 1024**2 * 4 // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < pages  # ten times as many where they are given back
