"""Acquisition shifts: the same radiographs with different framing, exposure or image quality.

`SHIFTS` are the fixed shifts of `evaluate.py --shifts`, each with a single change.
`perturb_exposure` and `perturb_scanner` draw random perturbed copies, on which thresholds are
chosen.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from scipy import ndimage

from cxr_tf.data.acquisition.statistics import BAND_EDGES
from cxr_tf.data.augmentation import (
    CUTOUT_DRAW,
    affine,
    augmentation_draws,
    binomial_blur,
    vary_acquisition,
)

# Ranges of `simulate_scanner`: log gamma; vertical and horizontal brightness gradient, as shares of
# the brightness; noise in grey levels at 224 pixels; standard deviation of the blur as a share of
# the side.
GAMMA, GRADIENT_DOWN, GRADIENT_ACROSS, NOISE, BLUR = 0.55, 0.35, 0.18, 12.0, 1 / 150


def perturb_exposure(images: np.ndarray, seed: int) -> np.ndarray:
    """Return a copy of each image changed by `vary_acquisition`, without covered squares.

    images: uint8 [N, S, S, 1], as is the result. Width and height change by at most 7 %. The seed
    determines the result.
    """
    draws = augmentation_draws(len(images), tf.constant([seed, -1], tf.int64)).numpy()
    draws[:, CUTOUT_DRAW] = 1.0
    return _in_batches(
        images, lambda part, rows: vary_acquisition(part, tf.constant(draws[rows]), framing=0.07)
    )


def perturb_scanner(images: np.ndarray, seed: int) -> np.ndarray:
    """Return a copy of each image, uint8 [N, S, S, 1], changed by `simulate_scanner`."""
    return _in_batches(
        images,
        lambda part, rows: simulate_scanner(
            tf.cast(part, tf.float32), tf.constant([seed, rows.start], tf.int64)
        ),
    )


def simulate_scanner(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Vary gamma and illumination; blur a third of the images, and add noise to another third.

    images: float32 [B, S, S, 1] in 0..255, as is the result. seed: int64 [2]. Gamma 0.58 to 1.73; a
    brightness gradient of up to 35 % vertically and 18 % horizontally; blur by up to a 150th of the
    side, or noise of up to 12 grey levels at 224 pixels, and less in smaller images.
    """
    batch, size = tf.shape(images)[0], images.shape[1]
    streams = tf.random.experimental.stateless_split(seed, 2)
    draws = tf.random.stateless_uniform([batch, 5], streams[0], -1.0, 1.0)
    u = [draws[:, i, None, None, None] for i in range(5)]

    images = 255.0 * tf.pow(tf.clip_by_value(images / 255.0, 0.0, 1.0), tf.exp(GAMMA * u[0]))
    ramp = tf.linspace(-1.0, 1.0, size)
    down, across = ramp[None, :, None, None], ramp[None, None, :, None]
    images *= 1.0 + GRADIENT_DOWN * u[1] * down + GRADIENT_ACROSS * u[2] * across

    # Each pass adds a variance of half a squared pixel.
    smooth = images
    for _ in range(max(1, round(2 * (BLUR * size) ** 2))):
        smooth = binomial_blur(smooth)
    noise = tf.random.stateless_normal(tf.shape(images), streams[1]) * NOISE * size / 224
    which, amount = u[4], tf.abs(u[3])
    images += tf.where(
        which < -1 / 3,
        amount * (smooth - images),
        tf.where(which < 1 / 3, amount * noise, tf.zeros_like(images)),
    )
    return tf.clip_by_value(images, 0.0, 255.0)


def _in_batches(
    images: np.ndarray, change: Callable[[np.ndarray, slice], tf.Tensor], size: int = 256
) -> np.ndarray:
    changed = np.empty_like(images)
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        changed[rows] = np.round(change(images[rows], rows).numpy())
    return changed


Shift = Callable[[np.ndarray], np.ndarray]

# Aspect of sick children's radiographs divided by that of healthy children's (Kermany).
ASPECT = 1.22


def framed(images: np.ndarray, *, width: float = 1.0, height: float = 1.0) -> np.ndarray:
    """Zoom out (above 1) or in by width and height; the area outside the image is black."""
    ones, zeros = tf.ones(len(images)), tf.zeros(len(images))
    return _as_pixels(
        affine(
            tf.cast(images, tf.float32),
            angle=zeros,
            scale_x=width * ones,
            scale_y=height * ones,
            shift_x=zeros,
            shift_y=zeros,
        ).numpy()
    )


def gamma(images: np.ndarray, exponent: float) -> np.ndarray:
    """Apply a gamma curve: brighter (below 1) or darker (above 1)."""
    return _as_pixels(255 * (images / 255) ** exponent)


def lit_from_below(images: np.ndarray, change: float = 0.35) -> np.ndarray:
    """Brighten the lower edge, and darken the upper edge, by the share `change`."""
    ramp = 1 + change * np.linspace(-1, 1, images.shape[1])
    return _as_pixels(images * ramp[:, None, None])


def equalised(images: np.ndarray) -> np.ndarray:
    """Equalise the histogram of each image."""
    levels = np.arange(257)
    below = [np.histogram(image, bins=levels)[0].cumsum() / image.size for image in images]
    return np.stack(
        [_as_pixels(255 * share[image]) for share, image in zip(below, images, strict=True)]
    )


def blurred(images: np.ndarray) -> np.ndarray:
    """Blur with a standard deviation of a 150th of the side."""
    sigma = images.shape[1] / 150
    smooth = ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0))
    return _as_pixels(smooth)


def noisy(images: np.ndarray, spread: float = 12.0) -> np.ndarray:
    """Add the same Gaussian noise, of standard deviation `spread` in grey levels, to all images."""
    noise = np.random.default_rng(0).normal(0, spread, images.shape[1:])
    return _as_pixels(images + noise)


def margins(images: np.ndarray, value: int, share: float = 0.08) -> np.ndarray:
    """Shrink each image into a frame of one grey level, as wide as `share` of the side."""
    depth = round(share * images.shape[1])
    shrunk = framed(images, width=1 / (1 - 2 * share), height=1 / (1 - 2 * share))
    frame = np.ones(images.shape[1:3], bool)
    frame[depth:-depth, depth:-depth] = False
    shrunk[:, frame] = value
    return shrunk


def band_gains(images: np.ndarray, gains: Sequence[float]) -> np.ndarray:
    """Multiply the detail of four frequency bands, from fine to coarse, by `gains`.

    The bands are separated by `statistics.BAND_EDGES`.
    """
    pixels = images[..., 0].astype(np.float32)
    side = images.shape[1]
    levels = [ndimage.gaussian_filter(pixels, (0, s * side, s * side)) for s in BAND_EDGES]
    changed = levels[-1] + sum(
        gain * (fine - coarse)
        for gain, (fine, coarse) in zip(gains, itertools.pairwise(levels), strict=True)
    )
    return _as_pixels(changed)[..., None]


def _as_pixels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


SHIFTS: dict[str, Shift] = {
    "framed lower": lambda images: framed(images, height=1 / ASPECT),
    "framed wider": lambda images: framed(images, width=ASPECT),
    "framed narrower": lambda images: framed(images, width=1 / ASPECT),
    "framed higher": lambda images: framed(images, height=ASPECT),
    "closer": lambda images: framed(images, width=0.85, height=0.85),
    "farther": lambda images: framed(images, width=1.15, height=1.15),
    # 20 % of the side on each edge, as in a scan or a screenshot.
    "margins": lambda images: framed(images, width=1 / 0.6, height=1 / 0.6),
    "brighter": lambda images: gamma(images, 0.6),
    "darker": lambda images: gamma(images, 1.6),
    "lit from below": lit_from_below,
    "equalised": equalised,
    "blurred": blurred,
    "noisy": noisy,
    "black margins": lambda images: margins(images, 0),
    "white margins": lambda images: margins(images, 255),
    "fine detail weaker": lambda images: band_gains(images, (0.5, 0.5, 1, 1)),
    "fine detail stronger": lambda images: band_gains(images, (1.7, 1.7, 1, 1)),
    "coarse detail weaker": lambda images: band_gains(images, (1, 1, 0.65, 0.65)),
    "coarse detail stronger": lambda images: band_gains(images, (1, 1, 1.5, 1.5)),
}
