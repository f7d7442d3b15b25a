"""Statistics that describe how a radiograph was acquired and, by design, not its findings.

    chest = mean_chest(healthy_images)                  # uint8 [N, S, S, 1] -> float32 [32, 32]
    table = acquisition_statistics(images, chest)       # -> float64 [N, 16]

They are the tone, the sharpness by frequency band, the brightness of the borders, the left-right
asymmetry, and the framing of the chest. A class that can be predicted from them can be predicted
without looking at the lungs; see `metrics.shortcuts.audit_shortcuts`.
"""

import itertools

import numpy as np
from scipy import ndimage

# Side at which the statistics are computed, in pixels.
SIDE = 64

# Images per batch.
PART = 2048

# Side at which the chest is aligned with the mean chest, in pixels.
ALIGNMENT_SIDE = 32

# Standard deviations of the Gaussians that separate the bands of detail, as shares of the side.
BAND_EDGES = (0.0, 1 / 80, 1 / 40, 1 / 20, 1 / 10)

# Depth of a border, as a share of the side.
BORDER = 1 / 16

# Grey level up to which a pixel is black, and grey level from which it is white.
BLACK, WHITE = 12, 243

STATISTICS = (
    *("mean", "spread", "black", "white"),
    *("detail_finest", "detail_fine", "detail_medium", "detail_coarse"),
    *("border_top", "border_bottom", "border_left", "border_right", "asymmetry"),
    *("chest_width", "chest_height", "chest_position"),
)

# Candidates for the alignment: scales (logarithms) and shifts (shares of the side).
_SCALES = np.linspace(-0.3, 0.3, 7)
_MOST_SHIFT = 5 / ALIGNMENT_SIDE


def acquisition_statistics(images: np.ndarray, chest: np.ndarray) -> np.ndarray:
    """Return the statistics of images, float64 [N, 16], in the order of `STATISTICS`.

    images: uint8 [N, S, S] or [N, S, S, 1]. chest: from `mean_chest`. Detail is the logarithm of
    the standard deviation within a frequency band, relative to that of the image; borders are in
    standard deviations above the image's mean; asymmetry is 1 minus the correlation with the mirror
    image; and the scales of the chest are logarithms.
    """
    if len(images) > PART:  # intermediate results take 100 kB per image
        parts = range(0, len(images), PART)
        return np.concatenate([acquisition_statistics(images[k : k + PART], chest) for k in parts])
    pixels = _thumbnails(images)
    n = len(pixels)
    mean = pixels.mean(axis=(1, 2))
    spread = pixels.std(axis=(1, 2)) + 1.0
    standard = (pixels - mean[:, None, None]) / spread[:, None, None]
    blurred = [standard, *(_blurred(standard, sigma * SIDE) for sigma in BAND_EDGES[1:])]
    detail = [
        np.log((fine - coarse).std(axis=(1, 2)) + 1e-3)
        for fine, coarse in itertools.pairwise(blurred)
    ]
    depth = round(BORDER * SIDE)
    borders = [
        standard[:, :depth].mean(axis=(1, 2)),
        standard[:, -depth:].mean(axis=(1, 2)),
        standard[:, :, :depth].mean(axis=(1, 2)),
        standard[:, :, -depth:].mean(axis=(1, 2)),
    ]
    asymmetry = 1.0 - (standard * standard[:, :, ::-1]).reshape(n, -1).mean(axis=1)
    shares = [(pixels <= BLACK).mean(axis=(1, 2)), (pixels >= WHITE).mean(axis=(1, 2))]
    columns = [mean, spread, *shares, *detail, *borders, asymmetry]
    return np.column_stack([*columns, align(pixels, chest)])


def mean_chest(images: np.ndarray) -> np.ndarray:
    """Return the mean local contrast of images, float32 [32, 32]."""
    parts = [_contrast(_thumbnails(images[k : k + PART])) for k in range(0, len(images), PART)]
    return np.sum([part.sum(axis=0) for part in parts], axis=0) / len(images)


def align(images: np.ndarray, chest: np.ndarray) -> np.ndarray:
    """Return the width, height and vertical position of chests relative to the mean chest: [N, 3].

    images: uint8 [N, S, S] or [N, S, S, 1]. chest: from `mean_chest`.

    Width and height are logarithms, the position is in shares of the side (positive: lower). They
    are found by cross-correlation of local contrast with the mean chest, at 49 scales and at
    vertical shifts of up to 5/32 of the side.
    """
    contrast = _contrast(_thumbnails(images)).reshape(len(images), -1)
    contrast /= np.linalg.norm(contrast, axis=1, keepdims=True) + 1e-9
    templates, parameters = _templates(chest)
    found = np.empty((len(images), 3))
    for start in range(0, len(images), 512):
        scores = contrast[start : start + 512] @ templates.T
        # A soft maximum, so that the estimate does not jump between two candidates.
        weights = np.exp(100.0 * (scores - scores.max(axis=1, keepdims=True)))
        found[start : start + 512] = weights @ parameters / weights.sum(axis=1, keepdims=True)
    return found


def _templates(chest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean chest at all scales and shifts [K, 1024], and (width, height, y) [K, 3]."""
    n = ALIGNMENT_SIDE
    centre = (n - 1) / 2
    shifts = np.arange(-round(_MOST_SHIFT * n), round(_MOST_SHIFT * n) + 1)
    templates, parameters = [], []
    for width in _SCALES:
        for height in _SCALES:
            # Maps a pixel of the template to one of the mean chest.
            zoom = np.array([np.exp(-height), np.exp(-width)])
            wide = 2 * shifts.max() + n
            offset = centre - zoom * (wide - 1) / 2
            scaled = ndimage.affine_transform(
                chest, zoom, offset=offset, output_shape=(wide, wide), order=1
            )
            for down in shifts:
                for right in (-3, 0, 3):
                    top, left = shifts.max() - down, shifts.max() - right
                    templates.append(scaled[top : top + n, left : left + n].ravel())
                    parameters.append((width, height, down / n))
    stacked = np.stack(templates)
    stacked -= stacked.mean(axis=1, keepdims=True)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True) + 1e-9
    return stacked.astype(np.float32), np.array(parameters, np.float32)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Downscale images uint8 [N, S, S(, 1)] to float32 [N, 64, 64]."""
    if images.ndim == 4:
        images = images[..., 0]
    if images.shape[1] == SIDE:
        return images.astype(np.float32)
    import tensorflow as tf

    parts = [
        tf.image.resize(images[k : k + 256, ..., None], [SIDE, SIDE], antialias=True).numpy()
        for k in range(0, len(images), 256)
    ]
    return np.concatenate(parts)[..., 0] if parts else np.zeros((0, SIDE, SIDE), np.float32)


def _contrast(pixels: np.ndarray) -> np.ndarray:
    """Return local contrast at the alignment's size: float32 [N, 64, 64] -> float32 [N, 32, 32]."""
    half = pixels.reshape(len(pixels), ALIGNMENT_SIDE, 2, ALIGNMENT_SIDE, 2).mean(axis=(2, 4))
    mean = _blurred(half, ALIGNMENT_SIDE / 10)
    variance = _blurred((half - mean) ** 2, ALIGNMENT_SIDE / 10)
    contrast = (half - mean) / np.sqrt(variance + 25.0)
    return contrast - contrast.mean(axis=(1, 2), keepdims=True)


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur [N, S, S] with a Gaussian, by products with a banded matrix; borders are mirrored."""
    matrix = ndimage.gaussian_filter1d(np.eye(pixels.shape[1]), sigma, axis=0).astype(np.float32)
    return matrix @ pixels @ matrix.T
