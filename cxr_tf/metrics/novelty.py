"""Mahalanobis distance of images from the training images, by a Gaussian of their features.

    gaussian = fit_gaussian(embeddings, labels)
    mahalanobis(gaussian, new_embeddings).min(axis=1)

Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks" (NeurIPS 2018): one mean per class, one covariance for all. The covariance is shrunk
(Ledoit and Wolf 2004), because there may be fewer images than features.
"""

from dataclasses import dataclass

import numpy as np

# Number of directions with a variance of their own; the others share their mean variance.
LARGEST_RANK = 256

# A feature that hardly varies in training must not dominate the distance: its scale is at least
# this share of the median scale.
SMALLEST_SCALE = 0.1


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian with a mean for each of C classes, over D features that are divided by `scale`.

    means: [C, D]; scale: [D]; components: [K, D], orthonormal; variances: [K] along them;
    residual_variance: in all other directions. All float64.
    """

    means: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    residual_variance: float


def fit_gaussian(
    features: np.ndarray, labels: np.ndarray, *, largest_rank: int = LARGEST_RANK
) -> Gaussian:
    """Fit a Gaussian with a mean per class and a shared, shrunk covariance.

    features: float [N, D]; labels: int [N]. Classes without an image are left out.
    """
    from sklearn.covariance import LedoitWolf

    features = np.asarray(features, np.float64)
    means = np.stack([features[labels == k].mean(axis=0) for k in np.unique(labels)])
    rows = np.searchsorted(np.unique(labels), labels)
    centred = features - means[rows]
    scale = centred.std(axis=0)
    smallest = SMALLEST_SCALE * np.median(scale[scale > 0]) if (scale > 0).any() else 1.0
    scale = np.maximum(scale, smallest)
    covariance = LedoitWolf(assume_centered=True).fit(centred / scale).covariance_
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1]
    kept, rest = order[:largest_rank], order[largest_rank:]
    # If no direction is left over, the residual is 0 and its variance does not matter.
    residual = float(variances[rest].mean()) if len(rest) else float(variances[kept[-1]])
    # Identical images have no variance.
    tiny = 1e-6
    return Gaussian(
        means=means / scale,
        scale=scale,
        components=vectors[:, kept].T.copy(),
        variances=np.maximum(variances[kept], tiny),
        residual_variance=max(residual, tiny),
    )


def mahalanobis(gaussian: Gaussian, features: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance of features [N, D] from each class mean, float64 [N, C]."""
    z = np.asarray(features, np.float64) / gaussian.scale
    distances = []
    for mean in gaussian.means:
        centred = z - mean
        along = centred @ gaussian.components.T
        squared = (along**2 / gaussian.variances).sum(axis=1)
        residual = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
        distances.append(squared + np.maximum(residual, 0.0) / gaussian.residual_variance)
    return np.sqrt(np.stack(distances, axis=1))
