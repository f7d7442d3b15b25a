"""Candidate novelty scores, computed from the outputs of one pass of the network.

Each score is fitted on training images, and returns one number per image, which is larger the less
the image resembles them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from cxr_tf.metrics.novelty import fit_gaussian, mahalanobis

# The k-th neighbour among at most this many training images (Sun et al. 2022 take 1 % of them).
NEIGHBOUR, LARGEST_INDEX = 10, 4096


@dataclass(frozen=True)
class Features:
    """Embeddings [N, D], logits [N, C] and pixel statistics [N, F] of images."""

    embeddings: np.ndarray
    logits: np.ndarray
    pixels: np.ndarray

    def take(self, rows: np.ndarray) -> "Features":
        """Return the features of the given rows."""
        return Features(self.embeddings[rows], self.logits[rows], self.pixels[rows])


Score = Callable[[Features], np.ndarray]


def fit_candidates(
    train: Features, labels: np.ndarray, perturbed: Features, val: Features
) -> dict[str, Score]:
    """Fit all candidates.

    perturbed: features of perturbed copies of the training images; val: features of validation
    images, by which scores with different units are scaled before they are combined.
    """
    one = np.zeros(len(labels), int)
    by_class = fit_gaussian(train.embeddings, labels)
    overall = fit_gaussian(train.embeddings, one)
    wide_embedding = fit_gaussian(
        np.concatenate([train.embeddings, perturbed.embeddings]), np.concatenate([labels, labels])
    )
    narrow_pixels = fit_gaussian(train.pixels, one)
    wide_pixels = fit_gaussian(np.concatenate([train.pixels, perturbed.pixels]), np.tile(one, 2))
    index = _unit(train.embeddings[:: max(1, len(labels) // LARGEST_INDEX)])

    def nearest_class(gaussian: object) -> Score:
        return lambda x: mahalanobis(gaussian, x.embeddings).min(axis=1)  # type: ignore[arg-type]

    def relative(x: Features) -> np.ndarray:
        own = mahalanobis(by_class, x.embeddings) ** 2
        return (own - mahalanobis(overall, x.embeddings) ** 2).min(axis=1)

    def neighbour(x: Features) -> np.ndarray:
        similarity = _unit(x.embeddings) @ index.T
        return 1 - np.sort(similarity, axis=1)[:, -NEIGHBOUR]

    def energy(x: Features) -> np.ndarray:
        return -special.logsumexp(x.logits, axis=1)

    def largest_probability(x: Features) -> np.ndarray:
        return -special.softmax(x.logits, axis=1).max(axis=1)

    def pixels(gaussian: object) -> Score:
        return lambda x: mahalanobis(gaussian, x.pixels)[:, 0]  # type: ignore[arg-type]

    scores: dict[str, Score] = {
        "largest probability": largest_probability,
        "energy": energy,
        "Mahalanobis": nearest_class(by_class),
        "Mahalanobis, with perturbed copies": nearest_class(wide_embedding),
        "relative Mahalanobis": relative,
        f"{NEIGHBOUR}th neighbour": neighbour,
        "pixel statistics": pixels(narrow_pixels),
        "pixel statistics, with perturbed copies": pixels(wide_pixels),
    }

    def combined(first: str, second: str) -> Score:
        limits = [np.quantile(scores[name](val), 0.99) for name in (first, second)]
        return lambda x: np.maximum(scores[first](x) / limits[0], scores[second](x) / limits[1])

    wide = "pixel statistics, with perturbed copies"
    scores["Mahalanobis or pixel statistics"] = combined("Mahalanobis", wide)
    scores["both with perturbed copies (used)"] = combined(
        "Mahalanobis, with perturbed copies", wide
    )
    scores["neighbour or pixel statistics"] = combined(f"{NEIGHBOUR}th neighbour", wide)
    return scores


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
