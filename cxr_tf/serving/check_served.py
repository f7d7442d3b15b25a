"""Is what is served what was measured? Asks exported models again, as TF Serving would.

    python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn

Every test image goes, as the bytes of its file, into the SavedModel of the run, in a process that
imports only TensorFlow (`cxr_tf.bare_process`). The answers are compared with the run's
`predictions-test.csv`.
"""

import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.config import CheckServed
from cxr_tf.errors import UserError
from cxr_tf.files import write_json
from cxr_tf.runs import Run, is_foreign, numbered_names, reserve_run, run_record, start_run
from cxr_tf.serving import cards, versions
from cxr_tf.serving.client import read_image
from cxr_tf.serving.runtimes import bare_process

log = logging.getLogger(__name__)


# Between two programs that do the same in float32: other kernels, another order of sums. A file of
# predictions holds eight digits.
TOLERANCE = 1e-4


def check_served(settings: CheckServed) -> Run:
    """Compares all test images of the runs; returns the run directory with the result.

    `metrics.json`: {"agreed": bool, "models": [{"run", "kind", "saved_model", "images", "equal",
    "largest_difference", "labels_equal"}]}. `equal` counts the images whose numbers differ by at
    most 1e-4 and whose label is the same.

    Raises UserError where a run has no exported model or no predictions, or an image is gone.
    """
    if not settings.runs:
        raise UserError("no run to check: --runs logs/classifier/<name> ...")
    # A check is asked for again and again, and each has its own record.
    records = Path(settings.logs) / "served"
    names = numbered_names(Path(settings.runs[0]).resolve().name)
    free = (n for n in names if not Run(records / n).finished and not is_foreign(records / n))
    name = settings.name or next(free)
    run = reserve_run(settings.logs, "served", name, settings)
    checked = [_Checked(folder) for folder in settings.runs]
    with tempfile.TemporaryDirectory(prefix="served-") as place:
        jobs, written = [], {}
        for number, one in enumerate(checked):
            if one.paths not in written:
                written[one.paths] = _write_files(one.paths, Path(place) / f"{number}.tfrecord")
            answers = str(Path(place) / f"{number}.npz")
            jobs.append({"model": str(one.model), "files": written[one.paths], "answers": answers})
        write_json(Path(place) / "job.json", jobs)
        done = subprocess.run(
            [sys.executable, bare_process.__file__, str(Path(place) / "job.json")],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
            raise RuntimeError(f"the exported models cannot be asked: {reason}")
        found = []
        for one, job in zip(checked, jobs, strict=True):
            with np.load(job["answers"]) as answers:
                found.append(one.compare(dict(answers)))
            log.info("%s", result_line(found[-1]))
    start_run(run.directory, run_record("served", name, settings, None))
    run.write_metrics({"agreed": all(f["equal"] == f["images"] for f in found), "models": found})
    return run


class _Checked:
    """A finished run with an exported model, and what it measured on test."""

    def __init__(self, folder: str) -> None:
        run = Run(Path(folder))
        if not run.finished:
            raise UserError(f"{folder} is not a finished run: logs/<job>/<name>")
        self.kind = run.config["job"]
        model = run.metrics.get("model", {}).get("saved_model", "")
        predictions = run.directory / "predictions-test.csv"
        if not model or not predictions.exists():
            raise UserError(
                f"{folder} has no exported model with predictions on test; classifiers, "
                "neighbours and autoencoders have"
            )
        self.folder, self.model = folder, versions.exported_by(run)
        cards.check_files(self.model, cards.read_card(self.model))
        self.columns = run.predictions("test")
        self.paths = tuple(self.columns["path"].tolist())

    def compare(self, answers: dict[str, np.ndarray]) -> dict[str, Any]:
        """What one model answered, against what was written of it."""
        if "score" in answers:
            written = self.columns["score"][:, None]
            served = answers["score"][:, None]
            # The file names the finding that an anomaly is called, which is the model's only two.
            labels = np.where(answers["is_anomaly"], "pneumonia", "normal")
        else:
            classes = [c.decode() for c in answers["classes"][0]]
            written = np.stack([self.columns[name] for name in classes], axis=1)
            served, labels = answers["probabilities"], np.char.decode(answers["label"])
        difference = np.abs(served - written).max(axis=1)
        same = labels == self.columns["predicted"]
        return {
            "run": self.folder,
            "kind": self.kind,
            "saved_model": str(self.model),
            "images": len(self.paths),
            "equal": int(((difference <= TOLERANCE) & same).sum()),
            "largest_difference": float(difference.max()),
            "labels_equal": int(same.sum()),
        }


def _write_files(paths: Sequence[str], file: Path) -> str:
    with tf.io.TFRecordWriter(str(file)) as writer:
        for path in paths:
            writer.write(read_image(path))
    return str(file)


def result_line(found: dict[str, Any]) -> str:
    """One line about one model."""
    return (
        f"{found['saved_model']}: {found['equal']} of {found['images']} test images as measured, "
        f"largest difference {found['largest_difference']:.1g}"
    )
