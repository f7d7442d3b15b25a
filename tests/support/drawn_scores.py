"""Random labels and probabilities, for tests of the metrics."""

import numpy as np
from scipy import special

BINARY = ("normal", "pneumonia")
THREE = ("normal", "bacterial", "viral")


def drawn(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels int [N], somewhat informative probabilities [N, C], and the likeliest class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    # Rounded, so that scores tie.
    probabilities = special.softmax(np.round(logits, 1), axis=1)
    return labels, probabilities, probabilities.argmax(axis=1)
