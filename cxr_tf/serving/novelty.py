"""Detect images unlike the training images, inside the served graph.

    detector = fit_detector(model, train, val)
    detector(images, embedding)                  # novelty float32 [N]; above 1 the image is novel

The novelty of an image is the larger of two Mahalanobis distances, each divided by its limit: the
distance of its embedding from the nearest class of the training images, and the distance of its
pixel statistics (layout, contrast, symmetry, sharpness) from those of the training images. The
first depends on the features of the network; the second detects what these ignore, such as blank
or upside-down images. docs/out-of-distribution.md compares this detector with alternatives.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import STRESS_SEED, evaluation_batches
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.metrics.novelty import Gaussian, fit_gaussian, mahalanobis
from cxr_tf.models.classifier import embedding_of
from cxr_tf.training.inference import compiled, infer

# Share of the validation images that are not novel.
PASS_RATE = 0.99

# More training images do not change the fit, and each costs a pass through the network.
LARGEST_FIT = 2048

# Sides of the thumbnails in which statistics of the pixels are computed.
THUMBNAIL, LAYOUT = 32, 8


@dataclass(frozen=True)
class Detector:
    """Gaussians of pixel statistics and of embeddings, and the limit of the distance from each.

    The detector of an autoencoder, which has no embedding, uses pixel statistics alone. pass_rate:
    the share of validation images with a novelty of at most 1.
    """

    pixels: Gaussian
    pixel_limit: float
    pass_rate: float
    embedding: Gaussian | None = None
    embedding_limit: float = 1.0

    def __call__(self, images: tf.Tensor, embedding: tf.Tensor | None = None) -> tf.Tensor:
        """Return the novelty of images, float32 [N].

        images: float32 [N, S, S, 1 or 3] in 0..255; embedding: float32 [N, D].
        """
        novelty = distance(self.pixels, pixel_statistics(images[..., :1])) / self.pixel_limit
        if self.embedding is None:
            return novelty
        of_embedding = distance(self.embedding, tf.cast(embedding, tf.float64))
        return tf.maximum(novelty, tf.cast(of_embedding / self.embedding_limit, tf.float32))


def fit_detector(
    model: keras.Model, train: ImageDataset, val: ImageDataset, *, batch_size: int = 32
) -> Detector:
    """Fit the Gaussians to training images, and choose the limits on validation images.

    model: a float32 classifier of images [N, S, S, 3].
    """
    count = min(len(train.labels), LARGEST_FIT)
    rows = np.linspace(0, len(train.labels) - 1, count).astype(int)
    embed = compiled(embedding_of(model))
    # Exposure, framing and sharpness differ between machines: perturbed copies widen both fits.
    both = [
        infer(embed, evaluation_batches(train.images[rows], batch_size=batch_size, stress_seed=s))
        for s in (None, STRESS_SEED)
    ]
    embedding = fit_gaussian(np.concatenate(both), np.tile(train.labels[rows], 2))
    val_embeddings = infer(embed, evaluation_batches(val.images, batch_size=batch_size))
    pixels = _fit_pixels(train.images[rows])
    of_pixels = mahalanobis(pixels, statistics_of(val.images))[:, 0]
    limits, pass_rate = choose_limits(
        np.stack([of_pixels, mahalanobis(embedding, val_embeddings).min(axis=1)])
    )
    return Detector(pixels, float(limits[0]), pass_rate, embedding, float(limits[1]))


def fit_pixel_detector(train: np.ndarray, val: np.ndarray) -> Detector:
    """Fit a detector that uses pixel statistics alone; train, val: uint8 [N, S, S, 1]."""
    pixels = _fit_pixels(train)
    limits, pass_rate = choose_limits(mahalanobis(pixels, statistics_of(val)).T)
    return Detector(pixels, float(limits[0]), pass_rate)


def choose_limits(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the limit of each of K distances, and the share of images within all limits.

    distances: [K, N], of N validation images. Each limit is first chosen so that PASS_RATE of the
    images are within it. Then all are raised by the same factor, so that PASS_RATE of the images
    are within all of them, even if different images exceed different limits.
    """
    limits = np.maximum(np.quantile(distances, PASS_RATE, axis=1), 1e-12)
    novelty = (distances / limits[:, None]).max(axis=0)
    # The limits are slightly above the distance of the image that sets them, because the served
    # graph computes its distance in float32.
    limits *= np.quantile(novelty, PASS_RATE, method="higher") * (1 + 1e-4)
    passing = (distances / limits[:, None]).max(axis=0) <= 1
    return limits, float(passing.mean())


def statistics_of(images: np.ndarray, *, stress_seed: int | None = None) -> np.ndarray:
    """Return `pixel_statistics` of uint8 images [N, S, S, 1], or of their perturbed copies."""
    batches = evaluation_batches(images, batch_size=256, stress_seed=stress_seed)
    return np.concatenate([pixel_statistics(batch).numpy() for batch in batches])


def _fit_pixels(images: np.ndarray) -> Gaussian:
    both = [statistics_of(images), statistics_of(images, stress_seed=STRESS_SEED)]
    return fit_gaussian(np.concatenate(both), np.zeros(2 * len(images), int))


def distance(gaussian: Gaussian, features: tf.Tensor) -> tf.Tensor:
    """Return the Mahalanobis distance of features [N, D] from the nearest class mean, [N].

    It is computed as in `metrics.mahalanobis`, but in the dtype of the features.
    """
    dtype = features.dtype

    def constant(values: np.ndarray) -> tf.Tensor:
        return tf.constant(values, dtype)

    z = features / constant(gaussian.scale)
    components = constant(gaussian.components.T)
    squared = []
    for mean in gaussian.means:
        centred = z - constant(mean)
        along = tf.matmul(centred, components) ** 2
        residual = tf.reduce_sum(centred**2, axis=1) - tf.reduce_sum(along, axis=1)
        squared.append(
            tf.reduce_sum(along / constant(gaussian.variances), axis=1)
            + tf.maximum(residual, 0) / gaussian.residual_variance
        )
    return tf.sqrt(tf.reduce_min(tf.stack(squared), axis=0))


def pixel_statistics(images: tf.Tensor) -> tf.Tensor:
    """Return statistics of grey images: float32 [N, S, S, 1] in 0..255 -> float32 [N, F].

    The statistics are the layout, a standardised 8 x 8 thumbnail; brightness and contrast; the
    correlations of a 32 x 32 thumbnail with its mirrored, upside-down and transposed copies; and
    the logarithms of the mean vertical and horizontal gradients, relative to the contrast, of the
    image and of the thumbnail.
    """
    size = int(images.shape[1])
    gray = images[..., 0]
    thumbnail = _reduced(gray, size, THUMBNAIL)
    mean = tf.reduce_mean(thumbnail, axis=(1, 2), keepdims=True)
    spread = tf.math.reduce_std(thumbnail, axis=(1, 2), keepdims=True) + 2.0
    standard = (thumbnail - mean) / spread
    layout = _reduced(standard, THUMBNAIL, LAYOUT)
    turned = (standard[:, :, ::-1], standard[:, ::-1], tf.transpose(standard, (0, 2, 1)))
    symmetry = [tf.reduce_mean(standard * other, axis=(1, 2)) for other in turned]
    contrast = spread[:, 0, 0]
    gradients = [
        tf.reduce_mean(tf.abs(difference), axis=(1, 2))
        for picture in (gray, thumbnail)
        for difference in (
            picture[:, 1:] - picture[:, :-1],
            picture[:, :, 1:] - picture[:, :, :-1],
        )
    ]
    summary = [
        mean[:, 0, 0] / 64,
        tf.math.log(contrast),
        *symmetry,
        *(tf.math.log((g + 0.05) / contrast) for g in gradients),
    ]
    flat = tf.reshape(layout, [-1, LAYOUT * LAYOUT])
    return tf.concat([flat, tf.stack(summary, axis=1)], axis=1)


def _reduced(images: tf.Tensor, size: int, reduced: int) -> tf.Tensor:
    """Reduce images [N, size, size] to [N, reduced, reduced], each pixel the mean of its area."""
    edges = np.arange(reduced + 1) * size / reduced
    starts, ends = edges[:-1, None], edges[1:, None]
    pixels = np.arange(size)
    overlap = np.clip(np.minimum(ends, pixels + 1) - np.maximum(starts, pixels), 0, None)
    weights = tf.constant(overlap * reduced / size, images.dtype)
    return tf.einsum("rs,nst,qt->nrq", weights, images, weights)
