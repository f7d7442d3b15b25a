"""Detection of images unlike those of the training, inside the served graph.

    detector = fit_detector(model, train, val)
    detector(images, embedding)                  # novelty float32 [N]; above 1 the image is novel

The largest of two Mahalanobis distances, each divided by its limit: of the embedding from the
nearest class, and of simple statistics of the pixels (layout, contrast, symmetry, sharpness). The
first sees what the network knows of radiographs, the second what it has learnt to ignore, such as
a blank image or one that is upside down. docs/out-of-distribution.md compares it with alternatives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import STRESS_SEED, evaluation_batches, to_rgb
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.metrics.novelty import Gaussian, fit_gaussian, mahalanobis
from cxr_tf.models.classifier import embedding_of

# Share of the validation images that pass.
PASS_RATE = 0.99

# More training images do not change the fit, and each costs a run of the network.
LARGEST_FIT = 4096

# Sides of the thumbnails in which statistics of the pixels are computed.
THUMBNAIL, LAYOUT = 32, 8


@dataclass(frozen=True)
class Detector:
    """Fitted distances of embeddings and of pixel statistics, and the limit of each.

    pass_rate: the share of validation images with a novelty of at most 1.
    """

    embedding: Gaussian
    pixels: Gaussian
    embedding_limit: float
    pixel_limit: float
    pass_rate: float

    def __call__(self, images: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
        """Return the novelty of images, float32 [N].

        images: float32 [N, S, S, 1 or 3] in 0..255; embedding: float32 [N, D].
        """
        of_embedding = distance(self.embedding, tf.cast(embedding, tf.float64))
        of_pixels = distance(self.pixels, pixel_statistics(images[..., :1]))
        return tf.maximum(
            tf.cast(of_embedding / self.embedding_limit, tf.float32),
            of_pixels / self.pixel_limit,
        )


def fit_detector(
    model: keras.Model, train: ImageDataset, val: ImageDataset, *, batch_size: int = 32
) -> Detector:
    """Fit the distances on training images, and their limits on validation images.

    model: a float32 classifier of images [N, S, S, 3].
    """
    count = min(len(train.labels), LARGEST_FIT)
    rows = np.linspace(0, len(train.labels) - 1, count).astype(int)
    features = feature_function(model)
    embeddings, statistics = features(train.images[rows], batch_size)
    embedding = fit_gaussian(embeddings, train.labels[rows])
    # Exposure, framing and sharpness differ between machines: perturbed copies widen the fit.
    perturbed = _statistics(train.images[rows], batch_size, STRESS_SEED)
    pixels = fit_gaussian(np.concatenate([statistics, perturbed]), np.zeros(2 * count, int))

    val_embeddings, val_statistics = features(val.images, batch_size)
    distances = np.stack(
        [
            mahalanobis(embedding, val_embeddings).min(axis=1),
            mahalanobis(pixels, val_statistics).min(axis=1),
        ]
    )
    limits = np.maximum(np.quantile(distances, PASS_RATE, axis=1), 1e-12)
    novelty = (distances / limits[:, None]).max(axis=0)
    # Two limits of 99 % each would together refuse more than 1 %.
    limits *= np.quantile(novelty, PASS_RATE, method="higher")
    passing = (distances / limits[:, None]).max(axis=0) <= 1 + 1e-9
    return Detector(embedding, pixels, float(limits[0]), float(limits[1]), float(passing.mean()))


def feature_function(
    model: keras.Model,
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Return a function from images and batch size to embeddings and pixel statistics.

    Images are uint8 [N, S, S, 1]; embeddings float32 [N, D]; statistics float32 [N, F].
    """
    network, size = embedding_of(model), int(model.input_shape[1])
    spec = tf.TensorSpec([None, size, size, 1], tf.float32)
    call = tf.function(
        lambda x: (network(to_rgb(x), training=False), pixel_statistics(x)),
        input_signature=[spec],
        autograph=False,
    )

    def features(images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [call(batch) for batch in evaluation_batches(images, batch_size=batch_size)]
        embeddings, statistics = zip(*parts, strict=True)
        return np.concatenate(embeddings), np.concatenate(statistics)

    return features


def _statistics(images: np.ndarray, batch_size: int, stress_seed: int) -> np.ndarray:
    batches = evaluation_batches(images, batch_size=batch_size, stress_seed=stress_seed)
    return np.concatenate([pixel_statistics(batch).numpy() for batch in batches])


def distance(gaussian: Gaussian, features: tf.Tensor) -> tf.Tensor:
    """Return the Mahalanobis distance of features [N, D] from the nearest class mean, [N].

    As `metrics.mahalanobis`, in the type of the features.
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
    """Return statistics of gray images float32 [N, S, S, 1] in 0..255: float32 [N, F].

    Layout: an 8 x 8 thumbnail, standardised; brightness and contrast; correlation of a 32 x 32
    thumbnail with itself mirrored, upside down and transposed; mean gradients down and across, of
    the image and of the thumbnail, relative to the contrast, as logarithms.
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
    """Images [N, size, size] to [N, reduced, reduced], each pixel the mean of its area."""
    edges = np.arange(reduced + 1) * size / reduced
    starts, ends = edges[:-1, None], edges[1:, None]
    pixels = np.arange(size)
    overlap = np.clip(np.minimum(ends, pixels + 1) - np.maximum(starts, pixels), 0, None)
    weights = tf.constant(overlap * reduced / size, images.dtype)
    return tf.einsum("rs,nst,qt->nrq", weights, images, weights)
