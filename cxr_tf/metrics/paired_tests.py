"""Paired tests of two models on the same images."""

import numpy as np
from scipy import stats


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value for equal AUROC of two models on the same images.

    labels: class index [N]. first, second: probabilities [N, C]. The AUROC is that of the second of
    two classes, or the macro average, as in `macro_auroc`.

    DeLong, DeLong and Clarke-Pearson 1988, by the midranks of Sun and Xu 2014. An AUROC is a mean
    of contributions of single images, and so is an average of several AUROCs. The test assumes
    independent images; if patients have several, prefer the bootstrap over patients. Returns NaN if
    a class has fewer than two images, or if all other classes together do.
    """
    classes = range(1, 2) if first.shape[1] == 2 else range(first.shape[1])
    difference, contributions = 0.0, np.zeros(len(labels))
    for k in classes:
        positive = labels == k
        m, n = int(positive.sum()), int((~positive).sum())
        if min(m, n) < 2:
            return float("nan")
        wins = _wins(positive, first[:, k]) - _wins(positive, second[:, k])
        difference += wins[positive].mean() / len(classes)
        for group, count in ((positive, m), (~positive, n)):
            spread = wins[group] - wins[group].mean()
            contributions[group] += spread / np.sqrt(count * (count - 1)) / len(classes)
    variance = float(np.sum(contributions**2))
    if variance <= 0:  # no variance: both perfect, or one the reverse of the other
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _wins(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the share of correctly ranked pairs of each image, float [N].

    A pair consists of the image and one of the opposite class. Ties count half.
    """
    overall = stats.rankdata(score)
    wins = np.empty(len(score))
    within_positives, within_negatives = (stats.rankdata(score[g]) for g in (positive, ~positive))
    wins[positive] = (overall[positive] - within_positives) / np.sum(~positive)
    wins[~positive] = 1 - (overall[~positive] - within_negatives) / np.sum(positive)
    return wins


def mcnemar_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact two-sided p-value for equal accuracy of two models (McNemar 1947)."""
    only_first = int(np.sum((first == labels) & (second != labels)))
    only_second = int(np.sum((first != labels) & (second == labels)))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
