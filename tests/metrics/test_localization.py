"""Localisation scores of perfect and of random maps."""

import numpy as np
import pytest

from cxr_tf import metrics


def test_localisation_scores_of_perfect_and_random_maps() -> None:
    rng = np.random.default_rng(0)
    lesions = np.zeros((20, 40, 40), bool)
    lesions[:, 5:12, 5:12] = True
    lesions[:, 25:27, 25:27] = True  # a small one counts as much as the large one
    perfect = lesions + 0.01 * rng.random(lesions.shape)
    assert metrics.pixel_auroc(perfect, lesions) == pytest.approx(1.0)
    assert metrics.per_region_overlap(perfect, lesions) == pytest.approx(1.0)
    assert metrics.pointing_hits(perfect, lesions).all()
    noise = rng.random(lesions.shape)
    assert metrics.pixel_auroc(noise, lesions) == pytest.approx(0.5, abs=0.03)
    assert metrics.per_region_overlap(noise, lesions) == pytest.approx(0.15, abs=0.03)
    # Only the large lesion is found: half of the overlap, although it has nine pixels in ten.
    half = perfect.copy()
    half[:, 25:27, 25:27] = -1.0
    assert metrics.per_region_overlap(half, lesions) == pytest.approx(0.5, abs=0.01)
    flat = np.zeros_like(noise)
    assert metrics.per_region_overlap(flat, lesions) == pytest.approx(0.15, abs=0.01)
