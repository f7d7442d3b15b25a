"""Tests of choosing the anomaly score and its threshold."""

import numpy as np
import pytest

from cxr_tf.config import TrainAutoencoder

SICK = np.array([False] * 10 + [True] * 10)
SCORES = np.concatenate([np.linspace(0.1, 1.0, 10), np.linspace(0.65, 1.55, 10)]).astype(np.float32)


def test_score_with_the_highest_auroc_is_chosen() -> None:
    from cxr_tf.anomaly.threshold import choose_score

    scores = {"combined": -SCORES, "appearance": SCORES, "residual": 2 * SCORES}
    assert choose_score(SICK, scores) == "appearance"  # the first of equal scores
    assert choose_score(np.zeros(20, bool), scores) == "combined"


@pytest.mark.parametrize(
    ("settings", "false_alarms", "least_sensitivity"),
    [
        ({}, 0, 0.6),
        ({"operating_point": "min-specificity:0.9"}, 1, 0.7),
        ({"operating_point": "min-sensitivity:0.8"}, 2, 0.8),
    ],
)
def test_threshold_follows_the_operating_point(
    settings: dict, false_alarms: int, least_sensitivity: float
) -> None:
    from cxr_tf.anomaly.threshold import choose_threshold

    threshold, _ = choose_threshold(SICK, SCORES[None], TrainAutoencoder(**settings))
    assert np.sum(SCORES[~SICK] >= threshold) == false_alarms
    assert np.mean(SCORES[SICK] >= threshold) >= least_sensitivity


def test_youden_uses_perturbed_copies_but_fixed_rates_do_not() -> None:
    from cxr_tf.anomaly.threshold import choose_threshold

    darker = SCORES - 0.5  # from another scanner
    both = np.stack([SCORES, darker])
    threshold, rule = choose_threshold(SICK, both, TrainAutoencoder())
    assert "exposure, scanner" in rule
    candidates = np.unique(both)
    called = both[..., None] >= candidates
    j = called[:, SICK].mean(axis=(0, 1)) - called[:, ~SICK].mean(axis=(0, 1))
    at = np.mean(both[:, SICK] >= threshold) - np.mean(both[:, ~SICK] >= threshold)
    assert at == pytest.approx(j.max())
    assert threshold < choose_threshold(SICK, SCORES[None], TrainAutoencoder())[0]
    by_rate = TrainAutoencoder(operating_point="min-specificity:0.9")
    assert choose_threshold(SICK, both, by_rate) == choose_threshold(SICK, SCORES[None], by_rate)


def test_threshold_without_abnormal_images_is_a_quantile_of_healthy_scores() -> None:
    from cxr_tf.anomaly.threshold import choose_threshold

    healthy = np.linspace(1, 2, 200).astype(np.float32)
    none_sick = np.zeros(200, bool)
    threshold, rule = choose_threshold(none_sick, healthy[None], TrainAutoencoder())
    assert np.mean(healthy >= threshold) == pytest.approx(0.05, abs=0.006)
    assert "no abnormal image" in rule
    threshold, _ = choose_threshold(
        none_sick, healthy[None], TrainAutoencoder(operating_point="min-specificity:0.8")
    )
    assert np.mean(healthy >= threshold) == pytest.approx(0.2, abs=0.006)
