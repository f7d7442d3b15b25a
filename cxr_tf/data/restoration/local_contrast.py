"""Local contrast of radiographs: each pixel in standard deviations of its surroundings.

    contrast = local_contrast(images)                # [N, S, S, 1] in 0..255 -> about -3..3
    restored = remove_residual(images, residual)     # the images with that contrast removed

Local contrast removes what is constant over a region (exposure, illumination, body build) and keeps
ribs and the edges of opacities.
"""

import keras
import numpy as np

# Standard deviation of the Gaussian window that defines the surroundings, as a share of the side:
# about the width of a rib and an intercostal space.
WINDOW = 1 / 16

# Grey levels; a region that varies less than this counts as blank.
MIN_SPREAD = 5.0

# Standard deviations; the limit clips metal markers.
MAX_CONTRAST = 2.8

# An opacity also brightens its own surroundings, so its removal is iterated this many times.
ITERATIONS = 8

# Standard deviations; the image is not changed at pixels with a smaller residual.
MIN_RESIDUAL = 0.03


def local_contrast(images: keras.KerasTensor, *, share: float = WINDOW) -> keras.KerasTensor:
    """Convert images float32 [N, S, S, 1] in 0..255 to standard deviations of their surroundings.

    (x - mean) / sqrt(variance + 25), clipped at 2.8, with mean and variance in a Gaussian window
    whose standard deviation is `share` of the side: the divisive normalisation of Jarrett et al.,
    "What is the best multi-stage architecture for object recognition?" (2009), with a floor on the
    variance that keeps blank regions blank.
    """
    mean, spread = _surroundings(images, _window(images, share))
    return keras.ops.clip((images - mean) / spread, -MAX_CONTRAST, MAX_CONTRAST)


def remove_residual(images: keras.KerasTensor, residual: keras.KerasTensor) -> keras.KerasTensor:
    """Remove an opacity from images [N, S, S, 1] in grey levels.

    residual: float32 [N, S, S, 1], the excess of local contrast in standard deviations. The result
    is computed by fixed-point iteration, with the surroundings of the previous iterate. Where the
    residual is negligible the image is not changed, and it never becomes brighter: local contrast
    does not determine how bright a region is, and an error would spread over the image. Dark
    structures in the middle of a wide opacity are not recovered.
    """
    window = _window(images)
    mean, spread = _surroundings(images, window)
    contrast = (images - mean) / spread - residual
    restored = images
    for _ in range(ITERATIONS):
        darker = keras.ops.maximum(keras.ops.minimum(mean + spread * contrast, images), 0.0)
        restored = keras.ops.where(residual > MIN_RESIDUAL, darker, images)
        mean, spread = _surroundings(restored, window)
    return restored


def _window(images: keras.KerasTensor, share: float = WINDOW) -> keras.KerasTensor:
    """Return the matrix [S, S] that averages over the surroundings, as a constant of the graph."""
    sigma = share * images.shape[1]
    return keras.ops.convert_to_tensor(_blur_matrix(images.shape[1], round(2 * sigma), sigma))


def _surroundings(
    images: keras.KerasTensor, window: keras.KerasTensor
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return mean and spread of each pixel's surroundings, [N, S, S, 1] each."""
    mean = _blurred(images, window, window)
    variance = keras.ops.maximum(_blurred(images * images, window, window) - mean * mean, 0.0)
    return mean, keras.ops.sqrt(variance + MIN_SPREAD**2)


def gaussian(x: keras.KerasTensor, *, radius: int, sigma: float) -> keras.KerasTensor:
    """Blur [N, H, W, 1] with a Gaussian, sigma in pixels; borders are mirrored.

    Computed as two products with a banded matrix: a one-channel convolution takes ten times as
    long.
    """
    return _blurred(x, *(_blur_matrix(int(n), radius, sigma) for n in x.shape[1:3]))


def _blurred(
    x: keras.KerasTensor, rows: keras.KerasTensor, columns: keras.KerasTensor
) -> keras.KerasTensor:
    return keras.ops.matmul(rows, keras.ops.matmul(x[..., 0], keras.ops.transpose(columns)))[
        ..., None
    ]


def _blur_matrix(size: int, radius: int, sigma: float) -> np.ndarray:
    """Return the matrix float32 [size, size] that blurs a column of pixels."""
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    mirrored = np.pad(np.eye(size), [(radius, radius), (0, 0)], mode="symmetric")
    shifted = [mirrored[k : k + size] for k in range(2 * radius + 1)]
    return np.tensordot(weights / weights.sum(), shifted, axes=1).astype(np.float32)
