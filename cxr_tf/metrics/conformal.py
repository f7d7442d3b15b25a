"""Conformal prediction sets: the classes that cannot be excluded at a given coverage.

    thresholds = conformal_thresholds(val_labels, val_probabilities, val_patients, coverage=0.95)
    sets = probabilities >= thresholds                                       # bool [N, C]

Split conformal prediction with the score 1 - p(true class), one threshold per class (Vovk 2012;
Sadinle, Lei and Wasserman 2019): the set contains the true class for at least the share `coverage`
of the images of each class. Patients are exchangeable, but the images of one patient are not
exchangeable with those of others, so each patient has the same weight (Lee, Barber and Willett,
"Distribution-free inference with hierarchical data", 2023).
"""

from collections.abc import Sequence

import numpy as np


def conformal_thresholds(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str],
    *,
    coverage: float,
) -> np.ndarray:
    """Return the smallest probability at which each class is in a prediction set, float [C].

    labels: int [N]; probabilities: float [N, C]. A class with too few patients for the coverage
    (fewer than coverage / (1 - coverage), 19 at 0.95) gets 0: it is in every set.
    """
    thresholds = np.zeros(probabilities.shape[1])
    for k in range(len(thresholds)):
        rows = np.flatnonzero(labels == k)
        if not len(rows):
            continue
        _, patient, images = np.unique(
            np.asarray(patients)[rows], return_inverse=True, return_counts=True
        )
        # The sum is K / (K + 1); the rest is for a new patient, who may be the least typical.
        weights = 1 / images[patient] / (len(images) + 1)
        order = np.argsort(-probabilities[rows, k], kind="stable")
        covered = np.cumsum(weights[order]) >= coverage - 1e-9
        if covered.any():
            thresholds[k] = probabilities[rows, k][order][np.argmax(covered)]
    return thresholds


def set_scores(
    labels: np.ndarray,
    sets: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the scores of prediction sets, bool [N, C], by their names in `metrics.json`.

    coverage: share of images whose set contains the true class; set_size: mean number of classes
    in a set; undecided: share of images whose set does not contain exactly one class; these three
    also per class. accuracy_decided: accuracy on the images whose set contains exactly one class.
    Undefined scores are NaN.
    """
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    covered = sets[np.arange(len(labels)), labels]
    size = sets.sum(axis=1)
    decided = size == 1

    def mean(values: np.ndarray, of: np.ndarray) -> float:
        total = (w * of).sum()
        return float((w * of * values).sum() / total) if total else float("nan")

    every = np.ones(len(labels), bool)
    return {
        "coverage": mean(covered, every),
        "set_size": mean(size, every),
        "undecided": mean(~decided, every),
        "accuracy_decided": mean(predicted == labels, decided),
        **{f"coverage/{name}": mean(covered, labels == k) for k, name in enumerate(classes)},
        **{f"set_size/{name}": mean(size, labels == k) for k, name in enumerate(classes)},
        **{f"undecided/{name}": mean(~decided, labels == k) for k, name in enumerate(classes)},
    }


def risk_coverage(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of accepted images and the error rate among them, each [N].

    Images are accepted in order of the probability of their predicted class, the most certain
    first (Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", 2017).
    """
    certainty = probabilities[np.arange(len(labels)), predicted]
    order = np.argsort(-certainty, kind="stable")
    count = np.arange(1, len(labels) + 1)
    return count / len(labels), np.cumsum(predicted[order] != labels[order]) / count
