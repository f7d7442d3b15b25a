"""Scores of an anomaly detector at a threshold."""

import numpy as np

from cxr_tf.metrics.ranking import average_precision, roc_area


def detection_scores(
    sick: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Return the metrics of an anomaly detector, with the keys of `classification_scores`.

    sick: whether an image is abnormal, bool [N]; scores: anomaly scores, float [N]. The keys are
    auroc, auprc, recall (the sensitivity), specificity, precision, f1, accuracy, balanced_accuracy.
    Images with a score at or above the threshold are classified as abnormal. A metric that is
    undefined, because a class has no images, is NaN.
    """
    w = np.ones(len(sick)) if weights is None else np.asarray(weights, float)
    positive = scores >= threshold
    true_positive, false_negative = w[sick & positive].sum(), w[sick & ~positive].sum()
    false_positive, true_negative = w[~sick & positive].sum(), w[~sick & ~positive].sum()

    positive_weight = true_positive + false_positive

    def share(part: float, rest: float) -> float:
        return float(part / (part + rest)) if part + rest > 0 else float("nan")

    recall = share(true_positive, false_negative)
    specificity = share(true_negative, false_positive)
    return {
        "auroc": roc_area(sick, scores, w),
        "auprc": average_precision(sick, scores, w),
        "accuracy": share(true_positive + true_negative, false_negative + false_positive),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": share(true_positive, false_positive) if positive_weight > 0 else 0.0,
        "recall": recall,
        "specificity": specificity,
        "f1": share(2 * true_positive, false_negative + false_positive),
    }
