"""95 % confidence intervals over patients: by bootstrap, or exact for scores of 0 and 1."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cxr_tf.metrics.classification import classification_scores

# The scores of a class with fewer patients than this have no interval.
MIN_PATIENTS = 2


def confidence_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    patients: list[str],
    classes: tuple[str, ...],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return the 95 % interval of every score of a classifier: {metric: [low, high]}.

    The bounds are percentiles of a bootstrap. Patients are resampled, not images, because images of
    one patient are not independent (cluster bootstrap, Field and Welsh 2007). Bootstrap samples in
    which a score is undefined are ignored; a score that is never defined has no interval.

    A score of 0 or 1 does not vary in the bootstrap; its interval is the exact one (Clopper and
    Pearson 1934) for the number of patients that the score is based on. The scores of a class with
    fewer than two patients have no interval.
    """
    return intervals(
        lambda weights: classification_scores(labels, probabilities, predicted, classes, weights),
        patients,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        support=classification_support(labels, predicted, patients, classes),
    )


def intervals(
    table: Callable[[np.ndarray], dict[str, float]],
    patients: list[str],
    *,
    bootstrap_samples: int,
    seed: int = 0,
    support: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Return intervals as `confidence_intervals` does, for any function from weights [N] to scores.

    support: the number of patients that each proportion is based on; a score without an entry is
    not a proportion, and has no exact interval.
    """
    if len(set(patients)) < MIN_PATIENTS:
        return {}  # an interval of zero width would suggest certainty
    support = support or {}
    scores = table(np.ones(len(patients)))
    tables = [
        table(w)
        for w in bootstrap_weights(patients, bootstrap_samples=bootstrap_samples, seed=seed)
    ]
    result = {}
    for metric in scores if tables else ():
        if metric in support and support[metric] < MIN_PATIENTS:
            continue
        if metric in support and scores[metric] in (0.0, 1.0):
            result[metric] = exact_interval(scores[metric], support[metric])
            continue
        values = np.array([t[metric] for t in tables])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.percentile(values, [2.5, 97.5])
            result[metric] = [float(low), float(high)]
    return result


def exact_interval(share: float, count: int) -> list[float]:
    """Return the exact 95 % interval of a share of 0 or 1 among `count` patients."""
    bound = 0.025 ** (1 / count)
    return [bound, 1.0] if share == 1.0 else [0.0, 1.0 - bound]


def classification_support(
    labels: np.ndarray, predicted: np.ndarray, patients: list[str], classes: tuple[str, ...]
) -> dict[str, int]:
    """Return the number of patients that each score of a classifier is based on.

    recall/c: patients with images of class c; specificity/c: patients with images of other classes;
    f1/c, auroc/c and auprc/c: the smaller of these two numbers; precision/c: patients with images
    predicted as c, or that smaller number if it is below two or if there are no such patients. The
    number for a mean over classes is the smallest of the classes.
    """
    names = np.asarray(patients)

    def count(rows: np.ndarray) -> int:
        return len(np.unique(names[rows]))

    per_class: dict[str, list[int]] = {}
    for k in range(len(classes)):
        of_class, of_others = count(labels == k), count(labels != k)
        both = min(of_class, of_others)
        predicted_as = count(predicted == k) if both >= MIN_PATIENTS else both
        for metric, patients_of in {
            "recall": of_class,
            "specificity": of_others,
            "precision": predicted_as or both,
            "f1": both,
            "auroc": both,
            "auprc": both,
        }.items():
            per_class.setdefault(metric, []).append(patients_of)
    support = {"accuracy": len(set(patients)), "balanced_accuracy": min(per_class["recall"])}
    for metric, counts in per_class.items():
        support[metric] = counts[1] if len(classes) == 2 else min(counts)
        support |= {f"{metric}/{name}": n for name, n in zip(classes, counts, strict=True)}
    return support


def detection_support(
    sick: np.ndarray, positive: np.ndarray, patients: list[str]
) -> dict[str, int]:
    """Return the support of an anomaly detector's scores, as `classification_support` does.

    sick, positive: whether an image is abnormal, and whether it was detected, bool [N].
    """
    support = classification_support(
        sick.astype(int), positive.astype(int), patients, ("normal", "sick")
    )
    return {metric: n for metric, n in support.items() if "/" not in metric}


def classification_counts(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]
) -> dict[str, list[int]]:
    """Return the numerator and denominator of each proportion: {metric: [correct, total]}.

    Both are numbers of images.
    """

    def counted(correct: np.ndarray, rows: np.ndarray) -> list[int]:
        return [int(np.sum(correct & rows)), int(np.sum(rows))]

    counts = {"accuracy": counted(labels == predicted, np.full(len(labels), True))}
    for k, name in enumerate(classes):
        of_class, as_class = labels == k, predicted == k
        scores = {
            "recall": counted(as_class, of_class),
            "specificity": counted(~as_class, ~of_class),
            "precision": counted(of_class, as_class),
        }
        counts |= {f"{metric}/{name}": value for metric, value in scores.items()}
        if len(classes) == 2 and k == 1:
            counts |= scores
    return counts


def with_interval(scores: dict[str, Any], metric: str, *, counts: bool = False) -> str:
    """Format a score with its 95 % interval, and with the numbers of images if `counts`."""
    value = scores[metric]
    text = "undefined" if value is None or np.isnan(value) else f"{value:.3f}"
    images = scores.get("counts", {}).get(metric) if counts else None
    of = f"{images[0]} of {images[1]}, " if images else ""
    low, high = scores["ci95"].get(metric, (None, None))
    return f"{text} ({of}no interval)" if low is None else f"{text} ({of}{low:.3f} to {high:.3f})"


def bootstrap_weights(patients: list[str], *, bootstrap_samples: int, seed: int) -> np.ndarray:
    """Return how often each image is in each bootstrap sample of patients: int [samples, N]."""
    names, patient_of_image = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=bootstrap_samples)
    return drawn[:, patient_of_image]
