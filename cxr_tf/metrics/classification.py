"""Scores of a classifier."""

import numpy as np

from cxr_tf.metrics.calibration import expected_calibration_error
from cxr_tf.metrics.ranking import average_precision, roc_area


def classification_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    classes: tuple[str, ...],
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Return a classifier's scores as the flat table stored in `metrics.json`.

    The keys are accuracy, balanced_accuracy, precision, recall, specificity, f1, auroc, auprc,
    brier, ece, loss and, for one class against the rest, `<metric>/<class>`. The Brier score is
    half the mean squared distance of the probabilities from the one-hot label, which for two
    classes is the usual binary score.
    An undefined score (of a class without images) is NaN. `weights` [N]: how often each image is
    counted, as in a bootstrap sample.
    """
    n, c = probabilities.shape
    w = np.ones(n) if weights is None else np.asarray(weights, float)
    one_hot = np.eye(c)[labels]
    confusion = np.zeros((c, c))
    np.add.at(confusion, (labels, predicted), w)
    with np.errstate(invalid="ignore", divide="ignore"):
        correct = np.diag(confusion)
        total = confusion.sum()
        support, predicted_count = confusion.sum(axis=1), confusion.sum(axis=0)
        recall = correct / support
        # Without a positive prediction, precision is 0 by convention, as in scikit-learn.
        precision = np.where(predicted_count > 0, correct / np.maximum(predicted_count, 1e-12), 0.0)
        f1 = 2 * correct / (support + predicted_count)
        specificity = (total - support - predicted_count + correct) / (total - support)
    auroc = np.array([roc_area(labels == k, probabilities[:, k], w) for k in range(c)])
    auprc = np.array([average_precision(labels == k, probabilities[:, k], w) for k in range(c)])
    per_class = {
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "auroc": auroc,
        "auprc": auprc,
    }
    true_probability = np.clip(probabilities[np.arange(n), labels], 1e-12, 1.0)
    squared = ((probabilities - one_hot) ** 2).sum(axis=1) / 2
    scores = {
        "accuracy": float(correct.sum() / total),
        "balanced_accuracy": float(recall.mean()),
        **{m: float(v[1] if c == 2 else v.mean()) for m, v in per_class.items()},
        "brier": float(np.average(squared, weights=w)),
        "ece": expected_calibration_error(labels, probabilities, weights=w),
        "loss": float(np.average(-np.log(true_probability), weights=w)),
    }
    for metric, values in per_class.items():
        scores |= {f"{metric}/{name}": float(values[k]) for k, name in enumerate(classes)}
    return scores


def macro_auroc(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the AUROC of the second of two classes; of more classes, the macro average."""
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    c = probabilities.shape[1]
    areas = [roc_area(labels == k, probabilities[:, k], w) for k in range(1 if c == 2 else 0, c)]
    return float(np.mean(areas))
