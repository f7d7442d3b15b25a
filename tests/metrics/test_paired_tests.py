"""DeLong's and McNemar's tests, compared with their papers and with simulations."""

import numpy as np
import pytest

from cxr_tf import metrics


def jackknife_z(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return DeLong's statistic from pairwise comparisons, as the paper defines it."""
    positive, negative = labels == 1, labels == 0
    of_positives, of_negatives = [], []
    for score in (first, second):
        gap = score[positive][:, None] - score[negative][None]
        wins = (gap > 0) + 0.5 * (gap == 0)
        of_positives.append(wins.mean(axis=1))
        of_negatives.append(wins.mean(axis=0))
    variance = np.var(of_positives[0] - of_positives[1], ddof=1) / positive.sum()
    variance += np.var(of_negatives[0] - of_negatives[1], ddof=1) / negative.sum()
    return (of_positives[0].mean() - of_positives[1].mean()) / np.sqrt(variance)


def delong_of_scores(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return DeLong's p-value for two models, each with one score [N] per image."""
    return metrics.delong_test(labels, *(np.stack([-s, s], axis=1) for s in (first, second)))


def test_delong_matches_the_paper_and_keeps_its_level() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    rejected = 0
    for trial in range(200):
        labels = np.arange(80) % 2
        shared = rng.normal(size=80) + labels
        first, second = (np.round(shared + rng.normal(size=80), 1) for _ in range(2))
        p = delong_of_scores(labels, first, second)
        rejected += p < 0.05
        if trial < 20:
            z = jackknife_z(labels, first, second)
            assert p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    assert 1 <= rejected <= 22  # of 200 true null hypotheses, 5 % are rejected by chance


def test_multiclass_delong_tests_the_macro_average() -> None:
    # Equal for healthy against the rest, but only one distinguishes bacterial from viral: the
    # printed difference is real, and the p-value must indicate it.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    healthy = np.where(labels == 0, 0.8, 0.2)
    split = np.where(labels == 2, 0.7, 0.3)
    knows = np.stack([healthy, (1 - healthy) * (1 - split), (1 - healthy) * split], 1)
    guess = rng.uniform(size=180)
    guesses = np.stack([healthy, (1 - healthy) * (1 - guess), (1 - healthy) * guess], 1)
    assert metrics.macro_auroc(labels, knows) > metrics.macro_auroc(labels, guesses) + 0.1
    assert metrics.delong_test(labels, knows, guesses) < 1e-6
    assert metrics.delong_test(labels, guesses, knows) < 1e-6
    # The order of the classes does not affect an average over them.
    turned = [2, 0, 1]
    p = metrics.delong_test(labels, guesses, knows[:, [0, 2, 1]])
    again = metrics.delong_test(
        (labels + 1) % 3, guesses[:, turned], knows[:, [0, 2, 1]][:, turned]
    )
    assert p == pytest.approx(again, rel=1e-9)


def test_multiclass_delong_keeps_its_level_and_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 40)
    rejected = 0
    for _ in range(200):
        shared = rng.normal(size=(120, 3)) + 1.5 * np.eye(3)[labels]
        first, second = (shared + rng.normal(size=(120, 3)) for _ in range(2))
        rejected += metrics.delong_test(labels, first, second) < 0.05
    assert 1 <= rejected <= 22
    # The standard error behind the last p-value, against that of resampled images.
    difference = metrics.macro_auroc(labels, first) - metrics.macro_auroc(labels, second)
    from scipy import stats

    z = stats.norm.isf(metrics.delong_test(labels, first, second) / 2)
    draws = metrics.bootstrap_weights([str(i) for i in range(120)], bootstrap_samples=1000, seed=0)
    resampled = [
        metrics.macro_auroc(labels, first, w) - metrics.macro_auroc(labels, second, w)
        for w in draws
    ]
    assert abs(difference) / z == pytest.approx(np.std(resampled), rel=0.15)


def test_delong_accepts_degenerate_scores() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    good = np.array([0.1, 0.2, 0.5, 0.4, 0.8, 0.9])
    assert delong_of_scores(labels, good, good**3) == 1.0
    assert delong_of_scores(labels, labels, labels) == 1.0
    # A perfect score and its reverse: nothing varies, and they are as different as can be.
    assert delong_of_scores(labels, labels, 1 - labels) == 0.0
    assert np.isnan(delong_of_scores(np.array([0, 0, 1]), good[:3], good[3:]))


def test_mcnemar_counts_discordant_decisions() -> None:
    labels = np.zeros(40, int)
    first, second = labels.copy(), labels.copy()
    second[:9], first[9:11], first[20:25], second[20:25] = 1, 1, 1, 1
    # 9 against 2 of 11 discordant: twice the binomial tail, (1 + 11 + 55) / 2^11.
    assert metrics.mcnemar_test(labels, first, second) == pytest.approx(2 * 67 / 2048)
    assert metrics.mcnemar_test(labels, first, first) == 1.0
