"""Operating points of each rule, and the rates that they reach."""

import numpy as np
import pytest

from cxr_tf import metrics
from cxr_tf.errors import UserError

#                    0    0    1    0    1    1
LABELS = np.array([0, 0, 1, 0, 1, 1])


SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])


def rates(threshold: float, labels=LABELS, scores=SCORES) -> tuple[float, float]:
    called = scores >= threshold
    return called[labels == 1].mean(), (~called)[labels == 0].mean()


@pytest.mark.parametrize(
    ("rule", "sensitivity", "specificity"),
    [
        ("0.5", 2 / 3, 2 / 3),
        ("youden", 2 / 3, 1.0),
        ("min-sensitivity:0.95", 1.0, 2 / 3),
        ("min-sensitivity:0.5", 2 / 3, 1.0),
        ("min-sensitivity:1", 1.0, 2 / 3),
        ("min-specificity:0.95", 2 / 3, 1.0),
        ("min-specificity:0.6", 1.0, 2 / 3),
        ("min-specificity:0.1", 1.0, 1 / 3),
    ],
)
def test_operating_points_follow_their_rules(rule, sensitivity, specificity) -> None:
    threshold = metrics.operating_point(LABELS, SCORES, rule)
    assert 0 < threshold < 1
    assert rates(threshold) == pytest.approx((sensitivity, specificity))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7, 0.9, 0.95, 0.99])
def test_operating_points_meet_their_target_at_every_sample_size(share: float) -> None:
    """A share that equals the target meets it, although rounding can miss it by one bit."""
    for count in (5, 10, 20, 40, 100):
        scores = np.arange(2 * count) / (2 * count)
        labels = np.arange(2 * count) % 2
        sensitivity, _ = rates(
            metrics.operating_point(labels, scores, f"min-sensitivity:{share}"), labels, scores
        )
        assert share - 1e-9 <= sensitivity < share + 1 / count - 1e-9
        _, specificity = rates(
            metrics.operating_point(labels, scores, f"min-specificity:{share}"), labels, scores
        )
        assert share - 1e-9 <= specificity < share + 1 / count - 1e-9


def test_an_unreachable_specificity_gives_a_threshold_above_all_scores() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([1.0, 0.5, 0.2], np.float32)
    threshold = metrics.operating_point(labels, scores, "min-specificity:0.95")
    assert not (scores >= np.float32(threshold)).any()


@pytest.mark.parametrize(
    "rule",
    [
        *("best", "min-sensitivity", "min-sensitivity:2", "min-sensitivity:0"),
        *("min-sensitivity:nan", "min-specificity:x", "0.5:0.4", "youden:1", ""),
    ],
)
def test_unknown_operating_points_are_refused(rule: str) -> None:
    with pytest.raises(UserError):
        metrics.operating_point(LABELS, SCORES, rule)


def test_operating_points_can_be_negative() -> None:
    sick = np.array([False, False, True, True])
    scores = np.array([-3.0, -2.0, -1.5, -1.0])
    assert -2.0 < metrics.operating_point(sick, scores, "youden") < -1.5
    everything = metrics.operating_point(~sick, scores, "min-sensitivity:1")
    assert everything < -3.0
    assert metrics.operating_point(~sick, scores, "min-specificity:1") > -1.0
