"""95 % confidence intervals by a bootstrap over patients."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cxr_tf.metrics.classification import classification_scores


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
    """Return 95 % percentile intervals of every score: {metric: [low, high]}.

    Patients are resampled, not images, because images of one patient are not independent (cluster
    bootstrap, Field and Welsh 2007). Bootstrap samples in which a score is undefined are ignored; a
    score that is never defined has no interval.
    """
    return intervals(
        lambda weights: classification_scores(labels, probabilities, predicted, classes, weights),
        patients,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )


def intervals(
    table: Callable[[np.ndarray], dict[str, float]],
    patients: list[str],
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return intervals as `confidence_intervals`, for any table of scores by weights [N]."""
    if len(set(patients)) < 2:
        return {}  # an interval of no width would suggest certainty
    tables = [
        table(w)
        for w in bootstrap_weights(patients, bootstrap_samples=bootstrap_samples, seed=seed)
    ]
    result = {}
    for metric in tables[0] if tables else ():
        values = np.array([t[metric] for t in tables])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.percentile(values, [2.5, 97.5])
            result[metric] = [float(low), float(high)]
    return result


def with_interval(scores: dict[str, Any], metric: str) -> str:
    """Format a score with its 95 % interval."""
    low, high = scores["ci95"].get(metric, (float("nan"),) * 2)
    return f"{scores[metric]:.3f} ({low:.3f} to {high:.3f})"


def bootstrap_weights(patients: list[str], *, bootstrap_samples: int, seed: int) -> np.ndarray:
    """Return the repetitions of each image in bootstrap samples of patients: int [samples, N]."""
    names, patient_of_image = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=bootstrap_samples)
    return drawn[:, patient_of_image]
