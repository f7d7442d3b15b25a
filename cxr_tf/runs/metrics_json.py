"""Reading and writing of a run's `metrics.json`, and the types of its fields."""

from pathlib import Path
from typing import Any

from cxr_tf.files import NUMBER, read_json, write_json

METRICS = "metrics.json"

# Types of the fields.
SCORES = ("auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity")
TABLE = {"ci95": {"*": [NUMBER]}, **dict.fromkeys((*SCORES, "f1", "loss"), NUMBER)}
METRICS_FIELDS = {
    "val": TABLE,
    "test": TABLE,
    "model": {
        "backbone": str,
        "task": str,
        "classes": [str],
        "saved_model": str,
        "threshold": NUMBER,
        "best_epoch": NUMBER,
        "selection_loss": NUMBER,
    },
    "history": [{"*": NUMBER}],
    "models": (dict, list),
    "steps": [{"name": str, "title": str, "run": str, "skipped": str, "seconds": NUMBER}],
    "machine": dict,
    "chosen": str,
    "source": str,
}


def read_metrics(directory: Path) -> dict[str, Any]:
    """Return the content of `metrics.json`; raise FileNotFoundError if the run is unfinished."""
    return read_json(directory / METRICS, METRICS_FIELDS)


def write_metrics(directory: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` atomically; its existence marks the run as finished."""
    write_json(directory / METRICS, metrics)
