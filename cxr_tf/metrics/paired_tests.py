"""Paired tests of two models on the same images."""

import numpy as np
from scipy import stats


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value for equal AUROC of two models on the same images.

    labels: class index [N]. first, second: probabilities [N, C]. Of two classes it is about the
    second, of more about the macro average, as in `macro_auroc`.

    DeLong, DeLong and Clarke-Pearson 1988, by the midranks of Sun and Xu 2014. An area is a mean
    over images of what each contributes; so is the average of several areas, of which an image
    contributes to each. It takes images as independent; where patients have several, the bootstrap
    over patients is the safer guide. NaN where a class, or all others, have fewer than two images.
    """
    classes = range(1, 2) if first.shape[1] == 2 else range(first.shape[1])
    difference, contributed = 0.0, np.zeros(len(labels))
    for k in classes:
        positive = labels == k
        m, n = int(positive.sum()), int((~positive).sum())
        if min(m, n) < 2:
            return float("nan")
        wins = _wins(positive, first[:, k]) - _wins(positive, second[:, k])
        difference += wins[positive].mean() / len(classes)
        for group, count in ((positive, m), (~positive, n)):
            spread = wins[group] - wins[group].mean()
            contributed[group] += spread / np.sqrt(count * (count - 1)) / len(classes)
    variance = float(np.sum(contributed**2))
    if variance <= 0:  # nothing varies: both perfect, or one the other's reverse
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _wins(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Of each positive the share of negatives below it, of each negative that of positives above
    it; ties count half. float [N]."""
    overall = stats.rankdata(score)
    wins = np.empty(len(score))
    within_positives, within_negatives = (stats.rankdata(score[g]) for g in (positive, ~positive))
    wins[positive] = (overall[positive] - within_positives) / np.sum(~positive)
    wins[~positive] = 1 - (overall[~positive] - within_negatives) / np.sum(positive)
    return wins


def mcnemar_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value for equal accuracy of two sets of decisions (McNemar 1947)."""
    only_first = int(np.sum((first == labels) & (second != labels)))
    only_second = int(np.sum((first != labels) & (second == labels)))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
