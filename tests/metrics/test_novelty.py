"""Tests of the Gaussian of the features that measures the novelty of an image."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from cxr_tf.metrics import novelty


def features(count: int = 200, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    values = rng.standard_normal((count, width)) @ rng.standard_normal((width, width))
    return values + 3 * labels[:, None], labels


def test_distance_is_the_mahalanobis_distance_under_the_shrunk_covariance() -> None:
    x, labels = features()
    gaussian = novelty.fit_gaussian(x, labels)
    centred = np.concatenate([x[labels == k] - x[labels == k].mean(0) for k in range(3)])
    scale = np.maximum(centred.std(0), 0.1 * np.median(centred.std(0)))
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred / scale).covariance_)
    found = novelty.mahalanobis(gaussian, x[:5])
    for row in range(5):
        for k in range(3):
            mean = x[labels == k].mean(0)
            expected = mahalanobis(x[row] / scale, mean / scale, inverse)
            assert found[row, k] == pytest.approx(expected)


def test_directions_beyond_the_rank_have_their_mean_variance() -> None:
    x, labels = features()
    full = novelty.fit_gaussian(x, labels)
    short = novelty.fit_gaussian(x, labels, largest_rank=15)
    assert short.components.shape == (15, 20)
    assert short.residual_variance == pytest.approx(full.variances[15:].mean())
    away = np.full((1, 20), 500.0)
    assert novelty.mahalanobis(short, away).min() > novelty.mahalanobis(short, x).max()


@pytest.mark.parametrize("count", [3, 10])
def test_fewer_images_than_features_and_constant_features_give_finite_distances(count: int) -> None:
    x, labels = features(count)
    x[:, 0] = 7
    distances = novelty.mahalanobis(novelty.fit_gaussian(x, labels), x + 1)
    assert np.isfinite(distances).all() and (distances > 0).all()
