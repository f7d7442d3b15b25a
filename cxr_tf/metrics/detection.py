"""Scores of an anomaly detector at a threshold."""

import numpy as np

from cxr_tf.metrics.ranking import average_precision, roc_area


def detection_scores(
    sick: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> dict[str, float]:
    """How well a score finds the sick at a threshold: sick bool [N], scores float [N].

    auroc, auprc, recall (which is the sensitivity), specificity, precision, f1, accuracy,
    balanced_accuracy, as in `classification_scores`; at or above the threshold is called sick.
    What is not defined, where one of the two is absent, is NaN.
    """
    w = np.ones(len(sick)) if weights is None else np.asarray(weights, float)
    called = scores >= threshold
    hits, misses = w[sick & called].sum(), w[sick & ~called].sum()
    alarms, passed = w[~sick & called].sum(), w[~sick & ~called].sum()

    def share(part: float, rest: float) -> float:
        return float(part / (part + rest)) if part + rest > 0 else float("nan")

    recall, specificity = share(hits, misses), share(passed, alarms)
    return {
        "auroc": roc_area(sick, scores, w),
        "auprc": average_precision(sick, scores, w),
        "accuracy": share(hits + passed, misses + alarms),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": share(hits, alarms) if hits + alarms > 0 else 0.0,
        "recall": recall,
        "specificity": specificity,
        "f1": share(2 * hits, misses + alarms),
    }
