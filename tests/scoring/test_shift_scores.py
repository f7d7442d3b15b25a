"""Tests of scores under acquisition shifts."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cxr_tf.data import loading
from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.dataset import decode_catalog
from cxr_tf.scoring.shifts import under_shifts


def test_each_shift_is_scored_on_its_shifted_images(unsplit: Path) -> None:
    _, images = decode_catalog(loading.open_catalog(str(unsplit), seed=3), 64, skip=False)
    batch_sizes: list[int] = []

    def by_brightness(contents: list[bytes]) -> dict[str, np.ndarray]:
        batch_sizes.append(len(contents))
        decoded = [np.asarray(Image.open(io.BytesIO(png)), float) for png in contents]
        assert all(pixels.shape == (64, 64) for pixels in decoded)
        return {"score": np.array([pixels.mean() for pixels in decoded])}

    def scored(outputs: dict[str, np.ndarray]) -> dict[str, float]:
        table = dict.fromkeys(("auroc", "balanced_accuracy", "recall", "specificity"), 0.5)
        return table | {f"image {k}": score for k, score in enumerate(outputs["score"])}

    served = SimpleNamespace(predictor={"serving_default": by_brightness}.get)
    results = under_shifts(served, images, scored, batch_size=7)
    assert set(batch_sizes) <= {7, len(images) % 7}
    for name, shift in SHIFTS.items():
        means = shift(images).mean(axis=(1, 2, 3))
        assert [results[name][f"image {k}"] for k in range(len(images))] == pytest.approx(
            list(means)
        )
