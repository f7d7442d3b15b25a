"""Predictions of a finished run, read back, and paired tests of two of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


@dataclass(frozen=True)
class Predictions:
    """`predictions-<split>.csv` read back: labels, predicted int [N]; probabilities [N, C]."""

    paths: list[str]
    patients: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray


def paired_tests(
    chosen: Predictions, other: Predictions, *, bootstrap_samples: int, seed: int = 0
) -> dict[str, Any]:
    """Whether two models differ on the same test images.

    `auroc_difference` (chosen minus other; macro average for more than two classes) with its 95 %
    interval from a bootstrap over patients; `delong_p` for the same difference; `mcnemar_p` for the
    decisions. Not corrected for the number of comparisons.
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
    """Read the predictions of a finished classifier or nearest-neighbours run."""
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
    """Tests pair images by row; equal data may stand in another order, in a folder and in a list of
    it."""
    first, *others = predictions
    for other in others:
        one, two = predictions[first], predictions[other]
        names = [[Path(path).name for path in p.paths] for p in (one, two)]
        same = names[0] == names[1] and one.patients == two.patients
        if not same or not np.array_equal(one.labels, two.labels):
            raise UserError(
                f"{first} and {other} list their test images in another order: train both from the "
                "same --data"
            )
