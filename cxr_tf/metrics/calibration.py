"""Calibration of probabilities: error, reliability diagram, temperature and bias."""

import numpy as np
from scipy import optimize, special

CALIBRATION_BINS = 15


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Return the mean gap between confidence and accuracy over 15 bins.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3.
    With two classes, the probability of the positive class is compared with its frequency.
    """
    w = np.ones(len(labels)) if weights is None else weights
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, w * (confidence - correct), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / w.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the mean confidence, observed share and number of images of each non-empty bin."""
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    nonempty = counts > 0
    mean = np.bincount(bins, confidence, CALIBRATION_BINS)[nonempty] / counts[nonempty]
    share = np.bincount(bins, correct, CALIBRATION_BINS)[nonempty] / counts[nonempty]
    return mean, share, counts[nonempty]


def fit_calibration(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return T and b [C] that minimise the log loss of softmax(logits / T + b).

    Bias-corrected temperature scaling (Alexandari et al., "Maximum Likelihood with Bias-Corrected
    Calibration is Hard-To-Beat at Label Shift Adaptation", ICML 2020). T is limited to
    0.05..20: if the logits separate the labels perfectly, the unbounded optimum is 0. The sum of b
    is 0; a standard normal prior keeps b small if there are too few rows to determine it. logits:
    [N, C]; labels: int [N]; weights [N]: how much each row counts.
    """
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    rows = np.arange(len(labels))
    onehot = np.eye(logits.shape[1])[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, bias = np.exp(-parameters[0]), parameters[1:]
        log_p = special.log_softmax(logits * inverse + bias, axis=1)
        error = w[:, None] * (np.exp(log_p) - onehot)
        value = -(w * log_p[rows, labels]).sum() + bias @ bias / (2 * len(labels))
        slope = -(error * logits).sum() * inverse
        return value, np.append(slope, error.sum(axis=0) + bias / len(labels))

    bounds = [(np.log(0.05), np.log(20.0))] + [(None, None)] * logits.shape[1]
    start = np.zeros(1 + logits.shape[1])
    optimum = optimize.minimize(
        loss, start, jac=True, bounds=bounds, method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500},
    )  # fmt: skip
    bias = optimum.x[1:]
    return float(np.exp(optimum.x[0])), bias - bias.mean()


def _confidence(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], (labels == 1).astype(float)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)
