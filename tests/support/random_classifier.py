"""Untrained classifiers whose probabilities depend on every part of the image."""

import keras
import numpy as np

from cxr_tf.models.classifier import build_classifier, calibrated
from cxr_tf.models.layer_graph import in_float32, read_network


def drawings(count: int, size: int) -> np.ndarray:
    """Draw images of coarse random squares: float32 [N, S, S, 3]."""
    rng = np.random.default_rng(5)
    squares = rng.integers(0, 256, (count, -(-size // 8), -(-size // 8), 1))
    squares = squares.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    return np.repeat(squares, 3, axis=3).astype(np.float32)


def random_classifier(
    name: str, size: int, *, classes: int = 3, precision: str = "float32"
) -> keras.Model:
    """Build a classifier with random weights and probabilities far from 0 and 1 on `drawings`."""
    model = build_classifier(name, classes=classes, image_size=size, precision=precision)
    rng = np.random.default_rng(3)
    for w in model.weights:
        shape = tuple(w.shape)
        if "moving_variance" in w.path or "gamma" in w.path:
            w.assign(rng.uniform(0.5, 1.5, shape))
        elif len(shape) == 1:
            w.assign(rng.normal(0, 0.1, shape))
        else:  # kernels, whose last axis is the output
            w.assign(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
    network = read_network(in_float32(model))
    scores = np.asarray(network.scores(network.standardise(drawings(2, size))))
    return calibrated(model, float(np.ptp(scores, axis=1).max()) / 2)
