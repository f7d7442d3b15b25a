"""Areas under the ROC and precision-recall curves, weighted."""

import numpy as np


def roc_area(positive: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: positive bool [N], score float [N]; NaN without one of the two."""
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, float)
    if not (weights[positive].sum() > 0 and weights[~positive].sum() > 0):
        return float("nan")
    hits, alarms = cumulative_counts(positive, score, weights)
    area = np.trapezoid(np.append(0.0, hits), np.append(0.0, alarms))
    return float(area / (hits[-1] * alarms[-1]))


def average_precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    """Return the area under the precision-recall curve, weighted; NaN without a positive."""
    if not weights[positive].sum() > 0:
        return float("nan")
    hits, alarms = cumulative_counts(positive, score, weights)
    # Where nothing counts that is called so far, no recall is gained either.
    precision = hits / np.maximum(hits + alarms, 1e-12)
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / hits[-1])


def cumulative_counts(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each distinct score, from the highest down, by weight.

    scikit-learn's `roc_auc_score` and `average_precision_score` give the same areas, but most of
    their time goes into checking what they are given, and the bootstrap asks thousands of times.
    As they do, it raises ValueError for a score that is NaN, which would sort as the lowest.
    """
    if np.isnan(score).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are called together
    weights, positive = weights[order], positive[order]
    return np.cumsum(weights * positive)[last], np.cumsum(weights * ~positive)[last]
