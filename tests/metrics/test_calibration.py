"""Calibration error and temperature."""

import numpy as np
import pytest
from scipy import special

from cxr_tf import metrics


def test_calibration_error_is_the_gap_between_confidence_and_frequency() -> None:
    labels = np.array([1] * 7 + [0] * 3 + [1] * 2 + [0] * 8)
    p = np.array([0.9] * 10 + [0.2] * 10)
    both = np.stack([1 - p, p], axis=1)
    assert metrics.expected_calibration_error(labels, both) == pytest.approx(0.1)
    mean, share, counts = metrics.reliability(labels, both)
    np.testing.assert_allclose(mean, [0.2, 0.9])
    np.testing.assert_allclose(share, [0.2, 0.7])
    np.testing.assert_array_equal(counts, [10, 10])
    # Probabilities of 1 belong to the last bin, not to one behind it.
    edge = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert metrics.expected_calibration_error(np.array([1, 0]), edge) == 0


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shift", [[0.0, 0.0, 0.0], [1.0, -0.7, -0.3]])
def test_calibration_recovers_temperature_and_bias(truth: float, shift: list[float]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6000, 3))
    chance = special.softmax(logits / truth + shift, axis=1)
    labels = (rng.random((6000, 1)) > chance.cumsum(axis=1)).sum(axis=1)
    temperature, bias = metrics.fit_calibration(logits, labels)
    assert temperature == pytest.approx(truth, rel=0.1)
    np.testing.assert_allclose(bias, shift, atol=0.1)


def test_calibration_is_bounded_for_separable_labels() -> None:
    logits = np.array([[4.0, -4.0], [-4.0, 4.0]])
    temperature, bias = metrics.fit_calibration(logits, np.array([0, 1]))
    assert 0.04 < temperature < 0.5 and np.abs(bias).max() < 0.1
    assert 15 < metrics.fit_calibration(logits, np.array([1, 0]))[0] <= 20.01
    # One class only: the prior keeps its bias finite.
    _, bias = metrics.fit_calibration(logits, np.array([0, 0]))
    assert 0 < bias[0] < 3
