"""Read the predictions of finished runs, and compare two models by paired tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


@dataclass(frozen=True)
class Predictions:
    """The columns of `predictions-<split>.csv`.

    labels, predicted: int [N]; probabilities: float64 [N, C].
    """

    paths: list[str]
    patients: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray


def paired_tests(
    chosen: Predictions, other: Predictions, *, bootstrap_samples: int, seed: int = 0
) -> dict[str, Any]:
    """Test whether two models differ on the same test images.

    Returns `auroc_difference` (chosen minus other; macro average for more than two classes) with
    its 95 % interval from a bootstrap over patients, `delong_p` for the same difference, and
    `mcnemar_p` for the predicted classes. The p-values are not corrected for multiple comparisons.
    """

    def auroc(p: Predictions, weights: np.ndarray | None = None) -> float:
        return metrics.macro_auroc(p.labels, p.probabilities, weights)

    draws = metrics.bootstrap_weights(
        chosen.patients, bootstrap_samples=bootstrap_samples, seed=seed
    )
    differences = np.array([auroc(chosen, w) - auroc(other, w) for w in draws])
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return {
        "auroc_difference": auroc(chosen) - auroc(other),
        "auroc_difference_ci95": [float(low), float(high)],
        "delong_p": metrics.delong_test(chosen.labels, chosen.probabilities, other.probabilities),
        "mcnemar_p": metrics.mcnemar_test(chosen.labels, chosen.predicted, other.predicted),
    }


def read_predictions(run: Run, split: str) -> Predictions:
    """Read the predictions of a finished classifier run or nearest-neighbours run."""
    classes = list(run.metrics["model"]["classes"])
    columns = run.predictions(split)
    return Predictions(
        paths=columns["path"].tolist(),
        patients=columns["patient"].tolist(),
        labels=np.array([classes.index(label) for label in columns["label"]]),
        probabilities=np.stack([columns[name] for name in classes], axis=1),
        predicted=np.array([classes.index(label) for label in columns["predicted"]]),
    )


def check_same_rows(predictions: dict[str, Predictions]) -> None:
    """Raise UserError unless all runs list the same test images in the same order.

    Paired tests match images by row, and a folder and a list of its files may differ in order.
    """
    first, *others = predictions
    for other in others:
        a, b = predictions[first], predictions[other]
        same_files = [Path(p).name for p in a.paths] == [Path(p).name for p in b.paths]
        same_patients = a.patients == b.patients
        if not (same_files and same_patients and np.array_equal(a.labels, b.labels)):
            raise UserError(
                f"{first} and {other} do not list the same test images in the same order: train "
                "both from the same --data"
            )
