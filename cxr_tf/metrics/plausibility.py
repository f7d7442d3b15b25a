"""Warnings about predictions that indicate a fault in the data or the network."""

from collections.abc import Sequence

import numpy as np


def prediction_warnings(split: str, predicted: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return a warning if all images of a split get the same class; predicted: int [N]."""
    if len(predicted) < 2 or len(np.unique(predicted)) > 1:
        return []
    return [f"all {len(predicted)} {split} images are classified as '{classes[predicted[0]]}'"]
