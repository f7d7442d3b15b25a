"""Weighted areas under the ROC and precision-recall curves."""

import numpy as np


def roc_area(positive: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the area under the ROC curve: positive bool [N], score float [N]; NaN if undefined."""
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, float)
    if not (weights[positive].sum() > 0 and weights[~positive].sum() > 0):
        return float("nan")
    true_positives, false_positives = cumulative_counts(positive, score, weights)
    area = np.trapezoid(np.append(0.0, true_positives), np.append(0.0, false_positives))
    return float(area / (true_positives[-1] * false_positives[-1]))


def average_precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted area under the precision-recall curve; NaN without a positive image."""
    if not weights[positive].sum() > 0:
        return float("nan")
    true_positives, false_positives = cumulative_counts(positive, score, weights)
    # As long as all weights so far are 0, recall does not increase either.
    precision = true_positives / np.maximum(true_positives + false_positives, 1e-12)
    return float(np.sum(np.diff(true_positives, prepend=0.0) * precision) / true_positives[-1])


def cumulative_counts(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted true and false positives at each distinct score, from the highest down.

    scikit-learn's `roc_auc_score` and `average_precision_score` give the same areas, but spend most
    of their time checking their arguments, and the bootstrap calls this thousands of times. Like
    them, this function raises ValueError for a NaN score, which would sort as the lowest.
    """
    if np.isnan(score).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores have the same threshold
    weights, positive = weights[order], positive[order]
    return np.cumsum(weights * positive)[last], np.cumsum(weights * ~positive)[last]
