"""Scores, thresholds, calibration, intervals and paired tests; scikit-learn and SciPy underneath.

    scores = classification_scores(labels, probabilities, predicted, ("normal", "pneumonia"))
    scores["ci95"] = confidence_intervals(labels, probabilities, predicted, patients, classes=...)

labels: int [N]. probabilities: float [N, C]. predicted: int [N]. With two classes the second one,
pneumonia, is positive; with more, unprefixed scores are macro averages.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics as sk

from cxr_tf.errors import UserError

CALIBRATION_BINS = 15


def classification_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    classes: tuple[str, ...],
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """The flat table of numbers of `metrics.json`.

    accuracy, balanced_accuracy, precision, recall, specificity, f1, auroc, auprc, brier, ece, loss,
    and `<metric>/<class>` one class against the rest. Brier score: mean squared distance of the
    probabilities from the one-hot label, halved, which for two classes is the usual binary one.
    A score that is not defined (a class without images) is NaN. `weights` [N] counts each image
    that often, which is how the bootstrap resamples.
    """
    n, c = probabilities.shape
    w = np.ones(n) if weights is None else np.asarray(weights, float)
    one_hot = np.eye(c)[labels]
    confusion = np.zeros((c, c))
    np.add.at(confusion, (labels, predicted), w)
    with np.errstate(invalid="ignore", divide="ignore"):
        hit = np.diag(confusion)
        total = confusion.sum()
        support, called = confusion.sum(axis=1), confusion.sum(axis=0)
        recall = hit / support
        # Nothing called positive: precision is 0 by convention, as in scikit-learn.
        precision = np.where(called > 0, hit / np.maximum(called, 1e-12), 0.0)
        f1 = 2 * hit / (support + called)
        specificity = (total - support - called + hit) / (total - support)
    auroc = np.array([roc_area(labels == k, probabilities[:, k], w) for k in range(c)])
    auprc = np.array([_auprc(labels == k, probabilities[:, k], w) for k in range(c)])
    per_class = {
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "auroc": auroc,
        "auprc": auprc,
    }
    true_probability = np.clip(probabilities[np.arange(n), labels], 1e-12, 1.0)
    squared = ((probabilities - one_hot) ** 2).sum(axis=1) / 2
    scores = {
        "accuracy": float(hit.sum() / total),
        "balanced_accuracy": float(recall.mean()),
        **{m: float(v[1] if c == 2 else v.mean()) for m, v in per_class.items()},
        "brier": float(np.average(squared, weights=w)),
        "ece": expected_calibration_error(labels, probabilities, weights=w),
        "loss": float(np.average(-np.log(true_probability), weights=w)),
    }
    for metric, values in per_class.items():
        scores |= {f"{metric}/{name}": float(values[k]) for k, name in enumerate(classes)}
    return scores


def confidence_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    patients: list[str],
    classes: tuple[str, ...],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % percentile intervals of every score: {metric: [low, high]}.

    Patients are resampled with replacement, not images, because images of one patient are not
    independent (cluster bootstrap, Field and Welsh 2007). Scores that come out undefined in a
    resample are left out of it; one that is never defined has no interval.
    """
    return intervals(
        lambda weights: classification_scores(labels, probabilities, predicted, classes, weights),
        patients,
        resamples=resamples,
        seed=seed,
    )


def intervals(
    table: Callable[[np.ndarray], dict[str, float]],
    patients: list[str],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """As `confidence_intervals`, of any table of scores that takes weights [N]."""
    if len(set(patients)) < 2:
        return {}  # every resample is the same: an interval of no width would look like certainty
    tables = [table(w) for w in bootstrap_weights(patients, resamples=resamples, seed=seed)]
    found = {}
    for metric in tables[0] if tables else ():
        values = np.array([t[metric] for t in tables])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.percentile(values, [2.5, 97.5])
            found[metric] = [float(low), float(high)]
    return found


def with_interval(scores: dict[str, Any], metric: str) -> str:
    """A score of a table and its 95 % interval, as it stands everywhere for a person to read."""
    low, high = scores["ci95"].get(metric, (float("nan"),) * 2)
    return f"{scores[metric]:.3f} ({low:.3f} to {high:.3f})"


def detection_scores(
    sick: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> dict[str, float]:
    """How well a score finds the sick at a threshold: sick bool [N], scores float [N].

    auroc, auprc, recall (which is the sensitivity), specificity, precision, f1, accuracy,
    balanced_accuracy, as in `classification_scores`; at or above the threshold is called sick.
    What is not defined, where one of the two is absent, is NaN.
    """
    w = np.ones(len(sick)) if weights is None else np.asarray(weights, float)
    called = scores >= threshold
    hits, misses = w[sick & called].sum(), w[sick & ~called].sum()
    alarms, passed = w[~sick & called].sum(), w[~sick & ~called].sum()

    def share(part: float, rest: float) -> float:
        return float(part / (part + rest)) if part + rest > 0 else float("nan")

    recall, specificity = share(hits, misses), share(passed, alarms)
    return {
        "auroc": roc_area(sick, scores, w),
        "auprc": _auprc(sick, scores, w),
        "accuracy": share(hits + passed, misses + alarms),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": share(hits, alarms) if hits + alarms > 0 else 0.0,
        "recall": recall,
        "specificity": specificity,
        "f1": share(2 * hits, misses + alarms),
    }


def bootstrap_weights(patients: list[str], *, resamples: int, seed: int) -> np.ndarray:
    """How often each image counts in each resample of patients: int [resamples, N]."""
    names, patient_of_image = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, patient_of_image]


def macro_auroc(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """AUROC of the positive class of two; else the mean over classes, each against the rest."""
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    c = probabilities.shape[1]
    areas = [roc_area(labels == k, probabilities[:, k], w) for k in range(1 if c == 2 else 0, c)]
    return float(np.mean(areas))


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins (Guo et al. 2017, equation 3).

    With two classes the probability of the positive class is binned against how often it is true.
    """
    w = np.ones(len(labels)) if weights is None else weights
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, w * (confidence - correct), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / w.sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    """Points of the reliability diagram: mean confidence, observed share, images, by filled bin."""
    confidence, correct = _confidence(labels, probabilities)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    mean = np.bincount(bins, confidence, CALIBRATION_BINS)[filled] / counts[filled]
    share = np.bincount(bins, correct, CALIBRATION_BINS)[filled] / counts[filled]
    return mean, share, counts[filled]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature of least log loss of softmax(logits / T) (Guo et al. 2017), in 0.05..20.

    The bounds matter where the logits separate the labels perfectly: the best T would then be 0.
    """

    def loss(log_t: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_t), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def operating_point(labels: np.ndarray, scores: np.ndarray, rule: str) -> float:
    """Threshold on the score (at or above it: positive) by a rule; labels bool or 0/1 [N].

    Rules: `half` is 0.5. `youden` maximises sensitivity + specificity (Youden 1950); between equal
    thresholds it takes the highest. `min-sensitivity:S` is the highest threshold whose sensitivity
    is at least S; `min-specificity:S` the lowest whose specificity is. All but `half` lie half-way
    between two scores. UserError for another rule.
    """
    name, _, argument = rule.partition(":")
    if rule == "half":
        return 0.5
    if name not in ("youden", "min-sensitivity", "min-specificity") or rule.startswith("youden:"):
        raise UserError(
            f"unknown operating point '{rule}'; known: half, youden, min-sensitivity:0.95, "
            "min-specificity:0.95"
        )
    target = 0.0
    if name != "youden":
        try:
            target = float(argument)
        except ValueError:
            target = -1.0
        if not 0 < target <= 1:
            raise UserError(f"operating point '{rule}': give a share in 0..1, as in {name}:0.95")
    false_alarm, sensitivity, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    # The first point is "nothing is positive", at an infinite threshold.
    false_alarm, sensitivity, thresholds = false_alarm[1:], sensitivity[1:], thresholds[1:]
    # Half-way down to the next score: on a score itself, the last bit of the model's arithmetic
    # would decide the image that it comes from.
    below_all = 0.0 if thresholds[-1] >= 0 else thresholds[-1] - 1.0
    between = (thresholds + np.append(thresholds[1:], below_all)) / 2
    # Rounded, because 1 - 0.9 is less than 0.1 in floating point.
    if name == "youden":
        return float(between[np.argmax(np.round(sensitivity - false_alarm, 9))])
    if name == "min-sensitivity":
        return float(between[np.argmax(np.round(sensitivity, 9) >= target)])
    allowed = np.flatnonzero(np.round(1 - false_alarm, 9) >= target)
    # If even the strictest threshold lets too many through, nothing but a stricter one will do:
    # the next number in float32, in which the model compares.
    above_all = np.nextafter(np.float32(thresholds[0]), np.float32(np.inf))
    return float(between[allowed[-1]] if len(allowed) else above_all)


def pixel_auroc(maps: np.ndarray, lesions: np.ndarray) -> float:
    """AUROC of single pixels, lesion or not; maps float [N, H, W], lesions bool [N, H, W]."""
    return float(sk.roc_auc_score(lesions.ravel(), maps.ravel()))


def per_region_overlap(
    maps: np.ndarray, lesions: np.ndarray, *, most_false_alarms: float = 0.3
) -> float:
    """AUPRO: mean overlap with each connected lesion, against the false alarms, as an area of 0..1.

    maps float [N, H, W], lesions bool [N, H, W]. Bergmann et al., "The MVTec Anomaly Detection
    Dataset" (2021), section 6.2: small lesions count like large ones. The curve is integrated up to
    a share of 0.3 of lesion-free pixels called abnormal; a random map gets 0.15.
    """
    from scipy import ndimage

    weight = np.zeros(maps.shape, np.float64)
    regions = 0
    for mask, target in zip(lesions, weight, strict=True):
        labels, count = ndimage.label(mask)
        areas = np.bincount(labels.ravel())
        target[mask] = 1.0 / areas[labels[mask]]
        regions += count
    if not regions or lesions.all():
        return float("nan")
    order = np.argsort(-maps.ravel(), kind="stable")
    values = maps.ravel()[order]
    overlap = np.cumsum(weight.ravel()[order]) / regions
    alarms = np.cumsum(~lesions.ravel()[order]) / np.sum(~lesions)
    last = np.append(values[1:] != values[:-1], True)  # equal values are called together
    overlap, alarms = np.append(0.0, overlap[last]), np.append(0.0, alarms[last])
    at_limit = np.interp(most_false_alarms, alarms, overlap)
    inside = alarms < most_false_alarms
    x = np.append(alarms[inside], most_false_alarms)
    return float(np.trapezoid(np.append(overlap[inside], at_limit), x) / most_false_alarms)


def pointing_hits(maps: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Pointing game (Zhang et al. 2018): whether each map's highest pixel lies in the lesion.

    maps float [N, H, W], lesions bool [N, H, W]; bool [N]. Without a tolerance around the pixel.
    """
    highest = maps.reshape(len(maps), -1).argmax(axis=1)
    return lesions.reshape(len(lesions), -1)[np.arange(len(maps)), highest]


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


def _confidence(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], (labels == 1).astype(float)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)


def roc_area(positive: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: positive bool [N], score float [N]; NaN without one of the two."""
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, float)
    if not (weights[positive].sum() > 0 and weights[~positive].sum() > 0):
        return float("nan")
    hits, alarms = _called(positive, score, weights)
    area = np.trapezoid(np.append(0.0, hits), np.append(0.0, alarms))
    return float(area / (hits[-1] * alarms[-1]))


def _auprc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    if not weights[positive].sum() > 0:
        return float("nan")
    hits, alarms = _called(positive, score, weights)
    # Where nothing counts that is called so far, no recall is gained either.
    precision = hits / np.maximum(hits + alarms, 1e-12)
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / hits[-1])


def _called(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives at each distinct score, from the highest down, by weight.

    scikit-learn's `roc_auc_score` and `average_precision_score` give the same areas, but most of
    their time goes into checking what they are given, and the bootstrap asks thousands of times.
    As they do, it raises ValueError for a score that is NaN, which would sort as the lowest.
    """
    if np.isnan(score).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are called together
    weights, positive = weights[order], positive[order]
    return np.cumsum(weights * positive)[last], np.cumsum(weights * ~positive)[last]
