"""Verify exported models by repeating the predictions on all test images as TF Serving would.

    python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn
    python scripts/check_served.py --runs logs/classifier/vgg16-binary --runtime c++

A separate process loads the SavedModel of each run and predicts all test images from their files.
It imports only TensorFlow (`runtimes.bare_process`), or it runs TensorFlow's C++ runtime without
the Python package (`runtimes.cpp_process`). Its predictions are compared with the run's
`predictions-test.csv`.
"""

import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.config import CheckServed
from cxr_tf.errors import UserError
from cxr_tf.files import write_json
from cxr_tf.runs import Run, is_foreign, numbered_names, reserve_run, run_record, start_run
from cxr_tf.serving.prediction.client import read_image
from cxr_tf.serving.runtimes import bare_process, cpp_comparison
from cxr_tf.serving.store import cards, versions

log = logging.getLogger(__name__)

# Programs that compute the same function in float32 use different kernels and add in a different
# order. `predictions-test.csv` has eight digits.
TOLERANCE = 1e-4

# The arguments of `python` that start the child process, for each --runtime.
PROGRAMS = {
    "tensorflow": [bare_process.__file__],
    "c++": ["-m", "cxr_tf.serving.runtimes.cpp_process"],
}


def check_served(settings: CheckServed) -> Run:
    """Verify the exported models of the runs on their test images; return a run with the results.

    `metrics.json`: {"agreed": bool, "models": [{"run", "kind", "saved_model", "images", "equal",
    "largest_difference", "labels_equal", "runtime"}]}. `equal` counts the images whose numbers
    differ by at most 1e-4 and whose label is the same. With --runtime c++ each model also has the
    result of `cpp_comparison.compare_runtimes`, as "c++".

    Raises UserError if a run has no exported model or no predictions, and FileNotFoundError if a
    test image is missing.
    """
    if not settings.runs:
        raise UserError("no run to check: give --runs logs/classifier/<name> ...")
    # Each check is recorded as a run of its own, even if the same models are checked again.
    records = Path(settings.logs) / "served"
    names = numbered_names(Path(settings.runs[0]).resolve().name)
    free = (n for n in names if not Run(records / n).finished and not is_foreign(records / n))
    name = settings.name or next(free)
    run = reserve_run(settings.logs, "served", name, settings)
    measurements = [read_measurement(folder) for folder in settings.runs]
    with tempfile.TemporaryDirectory(prefix="served-") as directory:
        tasks = _write_job(measurements, Path(directory), settings.runtime)
        done = subprocess.run(
            [sys.executable, *PROGRAMS[settings.runtime], str(Path(directory) / "job.json")],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
            raise RuntimeError(f"the exported models cannot predict: {reason}")
        results = []
        for measured, task in zip(measurements, tasks, strict=True):
            with np.load(task["predictions"]) as predictions:
                result = {**compare(measured, dict(predictions)), "runtime": settings.runtime}
            if settings.runtime == "c++":
                result["c++"] = cpp_comparison.compare_runtimes(
                    measured.model, measured.paths, task, TOLERANCE
                )
            log.info("%s", result_line(result))
            results.append(result)
    start_run(run.directory, run_record("served", name, settings, None))
    run.write_metrics({"agreed": all(map(agrees, results)), "models": results})
    return run


@dataclass(frozen=True)
class Measurement:
    """A finished run with an exported model, and its predictions on the test set.

    columns: the columns of `predictions-test.csv`, by name; paths: the test images, in the same
    order.
    """

    run: str
    kind: str
    model: Path
    columns: dict[str, np.ndarray]
    paths: tuple[str, ...]


def read_measurement(folder: str) -> Measurement:
    """Read the predictions of a run on the test set.

    Raises UserError if the run is not finished, or exported no model.
    """
    run = Run(Path(folder))
    if not run.finished:
        raise UserError(
            f"{folder} is not a finished run: give the folder of one, such as "
            "logs/classifier/<name>"
        )
    model = run.metrics.get("model", {}).get("saved_model", "")
    if not model or not (run.directory / "predictions-test.csv").exists():
        raise UserError(
            f"{folder} has no exported model with predictions on the test set; give the run of a "
            "classifier, of nearest neighbours or of an autoencoder"
        )
    columns = run.predictions("test")
    exported = versions.exported_by(run)
    cards.check_files(exported, cards.read_card(exported))
    return Measurement(
        folder,
        run.config["job"],
        exported,
        columns,
        tuple(columns["path"].tolist()),
    )


def compare(measured: Measurement, predictions: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare the outputs of `serving_default` for all test images with the measured ones."""
    if "score" in predictions:
        expected = measured.columns["score"][:, None]
        numbers = predictions["score"][:, None]
        # An autoencoder has two labels: an anomaly is recorded as pneumonia.
        labels = np.where(predictions["is_anomaly"], "pneumonia", "normal")
    else:
        classes = [c.decode() for c in predictions["classes"][0]]
        expected = np.stack([measured.columns[name] for name in classes], axis=1)
        numbers, labels = predictions["probabilities"], np.char.decode(predictions["label"])
    difference = np.abs(numbers - expected).max(axis=1)
    same = labels == measured.columns["predicted"]
    return {
        "run": measured.run,
        "kind": measured.kind,
        "saved_model": str(measured.model),
        "images": len(measured.paths),
        "equal": int(((difference <= TOLERANCE) & same).sum()),
        "largest_difference": float(difference.max()),
        "labels_equal": int(same.sum()),
    }


def agrees(result: dict[str, Any]) -> bool:
    """Return whether a model reproduces the measured predictions and passes any further checks."""
    return result["equal"] == result["images"] and result.get("c++", {"agreed": True})["agreed"]


def result_line(result: dict[str, Any]) -> str:
    """Format the result of one model as one line."""
    line = (
        f"{result['saved_model']}: predictions for {result['equal']} of {result['images']} test "
        f"images reproduced, largest difference {result['largest_difference']:.1g}"
    )
    if "c++" in result:
        line += "; " + cpp_comparison.result_line(result["c++"])
    return line


def _write_job(
    measurements: Sequence[Measurement], directory: Path, runtime: str
) -> list[dict[str, str]]:
    """Write `job.json` and the image files for the child process; return its tasks."""
    tasks: list[dict[str, str]] = []
    written: dict[tuple[str, ...], str] = {}
    for number, measured in enumerate(measurements):
        if measured.paths not in written:
            written[measured.paths] = str(directory / f"{number}.tfrecord")
            _write_files(measured.paths, written[measured.paths])
        task = {
            "model": str(measured.model),
            "files": written[measured.paths],
            "predictions": str(directory / f"{number}.npz"),
        }
        if runtime == "c++":
            further = directory / str(number)
            task |= cpp_comparison.prepare_task(measured.model, measured.paths, further)
        tasks.append(task)
    write_json(directory / "job.json", tasks)
    return tasks


def _write_files(paths: Sequence[str], file: str) -> None:
    with tf.io.TFRecordWriter(file) as writer:
        for path in paths:
            writer.write(read_image(path))
