"""Calibration of probabilities: error, reliability diagram, temperature."""

import numpy as np
from scipy import optimize, special

CALIBRATION_BINS = 15


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Return the mean gap of confidence and accuracy over 15 bins (Guo et al. 2017, equation 3).

    With two classes, the probability of the positive class is compared with its frequency.
    """
    w = np.ones(len(labels)) if weights is None else weights
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, w * (confidence - correct), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / w.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the reliability diagram by non-empty bin: mean confidence, observed share, images."""
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    nonempty = counts > 0
    mean = np.bincount(bins, confidence, CALIBRATION_BINS)[nonempty] / counts[nonempty]
    share = np.bincount(bins, correct, CALIBRATION_BINS)[nonempty] / counts[nonempty]
    return mean, share, counts[nonempty]


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the T that minimises the log loss of softmax(logits / T) (Guo et al. 2017).

    T is in 0.05..20: if the logits separate the labels perfectly, the unbounded optimum is 0.
    weights [N]: how much each row counts.
    """

    def loss(log_t: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_t), axis=1)
        return float(np.average(-scaled[np.arange(len(labels)), labels], weights=weights))

    optimum = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(optimum.x))


def _confidence(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], (labels == 1).astype(float)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)
