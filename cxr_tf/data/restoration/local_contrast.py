"""Radiographs by their local contrast: each pixel in deviations of its surroundings.

    seen = local_contrast(images)                    # [N, S, S, 1] in 0..255 -> about -3..3
    restored = without(images, removed)              # what is left when that much contrast goes

What is the same all over a region (exposure, light from one side, the build of a chest) is gone
from it; the edge of an opacity and a rib are not.
"""

import keras
import numpy as np

# Standard deviation of the Gaussian window that is a pixel's surroundings, as a share of the side:
# about a rib and its gap.
WINDOW = 1 / 16

# Grey levels; what varies less than this is blank.
LEAST_SPREAD = 5.0

# Deviations; a marker of metal is no more than that.
MOST_CONTRAST = 2.8

# An opacity raises its own surroundings, too; so often that is worked out again.
ROUNDS = 8

# Deviations; where less is removed than this, a restored image stays as it was.
LEAST_RESTORED = 0.03


def local_contrast(images: keras.KerasTensor, *, share: float = WINDOW) -> keras.KerasTensor:
    """Images float32 [N, S, S, 1] in 0..255 -> the same in deviations of their surroundings.

    (x - mean) / sqrt(variance + 25), clipped at 2.8, mean and variance by a Gaussian window whose
    standard deviation is that share of the side: the divisive normalisation of Jarrett et al.,
    "What is the best multi-stage architecture for object recognition?" (2009), with a floor that
    keeps blank places blank.
    """
    mean, spread = _surroundings(images, _window(images, share))
    return keras.ops.clip((images - mean) / spread, -MOST_CONTRAST, MOST_CONTRAST)


def without(images: keras.KerasTensor, removed: keras.KerasTensor) -> keras.KerasTensor:
    """Images [N, S, S, 1] in grey levels without an opacity that has raised them by `removed`.

    removed: float32 [N, S, S, 1], by how many deviations the local contrast is higher than it
    should be. By fixed-point iteration: the surroundings of the restored image are taken from the
    last one. Where nothing to speak of is removed the image stays, and nowhere it becomes brighter:
    local contrast alone does not tell how bright a region is, and an error in it would otherwise
    spread over the image. What is dark in the middle of a wide opacity is not found again.
    """
    window = _window(images)
    mean, spread = _surroundings(images, window)
    contrast = (images - mean) / spread - removed
    restored = images
    for _ in range(ROUNDS):
        darker = keras.ops.maximum(keras.ops.minimum(mean + spread * contrast, images), 0.0)
        restored = keras.ops.where(removed > LEAST_RESTORED, darker, images)
        mean, spread = _surroundings(restored, window)
    return restored


def _window(images: keras.KerasTensor, share: float = WINDOW) -> keras.KerasTensor:
    """The blur of the surroundings as a matrix [S, S]; one constant, however often it is used."""
    sigma = share * images.shape[1]
    return keras.ops.convert_to_tensor(_blur_matrix(images.shape[1], round(2 * sigma), sigma))


def _surroundings(
    images: keras.KerasTensor, window: keras.KerasTensor
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Mean and spread of each pixel's surroundings, [N, S, S, 1] each."""
    mean = _blurred(images, window, window)
    variance = keras.ops.maximum(_blurred(images * images, window, window) - mean * mean, 0.0)
    return mean, keras.ops.sqrt(variance + LEAST_SPREAD**2)


def gaussian(x: keras.KerasTensor, *, radius: int, sigma: float) -> keras.KerasTensor:
    """Gaussian blur of [N, H, W, 1], sigma in pixels; borders are mirrored.

    By two products with a banded matrix: a convolution of one channel takes ten times as long.
    """
    return _blurred(x, *(_blur_matrix(int(n), radius, sigma) for n in x.shape[1:3]))


def _blurred(
    x: keras.KerasTensor, rows: keras.KerasTensor, columns: keras.KerasTensor
) -> keras.KerasTensor:
    return keras.ops.matmul(rows, keras.ops.matmul(x[..., 0], keras.ops.transpose(columns)))[
        ..., None
    ]


def _blur_matrix(size: int, radius: int, sigma: float) -> np.ndarray:
    """float32 [size, size]: times a column of pixels it is the column blurred."""
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    mirrored = np.pad(np.eye(size), [(radius, radius), (0, 0)], mode="symmetric")
    shifted = [mirrored[k : k + size] for k in range(2 * radius + 1)]
    return np.tensordot(weights / weights.sum(), shifted, axes=1).astype(np.float32)
