"""Acquisition shifts: the same radiographs framed, exposed or stored in another way.

`SHIFTS` are the fixed shifts, one change at a time, that `evaluate.py --shifts` scores a model
under. `another_exposure` and `another_scanner` draw random perturbed copies, from which thresholds
are chosen.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from scipy import ndimage

from cxr_tf.data.augmentation import affine, augment, augmentation_draws, binomial_blur

# How far another scanner goes: the logarithm of gamma, light from one edge to the other (as shares
# of the brightness, down and across), grey levels of noise at 224 pixels, and the standard
# deviation of the blur as a share of the side.
GAMMA, LIGHT_DOWN, LIGHT_ACROSS, NOISE, BLUR = 0.55, 0.35, 0.18, 12.0, 1 / 150


def another_exposure(images: np.ndarray, seed: int) -> np.ndarray:
    """A copy of each image as the classifier's augmentation changes it, nothing covered.

    images: uint8 [N, S, S, 1]; the same size and type come back. Width and height by up to 7 %
    only; the same way for the same seed.
    """
    draws = augmentation_draws(len(images), tf.constant([seed, -1], tf.int64)).numpy()
    draws[:, 11] = 1.0  # no cutout
    return _in_parts(
        images, lambda part, rows: augment(part, tf.constant(draws[rows]), framing=0.07)
    )


def another_scanner(images: np.ndarray, seed: int) -> np.ndarray:
    """A copy of each image, uint8 [N, S, S, 1], as `rescanned` changes it; the same way for the
    same seed."""
    return _in_parts(
        images,
        lambda part, rows: rescanned(
            tf.cast(part, tf.float32), tf.constant([seed, rows.start], tf.int64)
        ),
    )


def rescanned(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Another tone and light, and blur or noise in two of three: float32 [B, S, S, 1] in 0..255.

    seed: int64 [2], which alone decides. Gamma 0.58 to 1.73; up to 35 % more light from above or
    below, 18 % from one side; blurred by up to a 150th of the side, or noise of up to 12 grey
    levels at 224 pixels, less where pixels are larger.
    """
    batch, size = tf.shape(images)[0], images.shape[1]
    streams = tf.random.experimental.stateless_split(seed, 2)
    draws = tf.random.stateless_uniform([batch, 5], streams[0], -1.0, 1.0)
    u = [draws[:, i, None, None, None] for i in range(5)]

    images = 255.0 * tf.pow(tf.clip_by_value(images / 255.0, 0.0, 1.0), tf.exp(GAMMA * u[0]))
    ramp = tf.linspace(-1.0, 1.0, size)
    down, across = ramp[None, :, None, None], ramp[None, None, :, None]
    images *= 1.0 + LIGHT_DOWN * u[1] * down + LIGHT_ACROSS * u[2] * across

    # A pass has a variance of half a pixel.
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


def _in_parts(
    images: np.ndarray, change: Callable[[np.ndarray, slice], tf.Tensor], size: int = 256
) -> np.ndarray:
    changed = np.empty_like(images)
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        changed[rows] = np.round(change(images[rows], rows).numpy())
    return changed


Shift = Callable[[np.ndarray], np.ndarray]

# The radiographs of sick children are about so much wider than those of healthy ones (Kermany).
ASPECT = 1.22


def framed(images: np.ndarray, *, width: float = 1.0, height: float = 1.0) -> np.ndarray:
    """More of width or height shown (above 1), or less; black where there is nothing to show."""
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
    """Brighter (below 1) or darker (above 1), black and white kept."""
    return _as_pixels(255 * (images / 255) ** exponent)


def lit_from_below(images: np.ndarray, change: float = 0.35) -> np.ndarray:
    """Brighter by so much at the lower edge, darker at the upper one."""
    ramp = 1 + change * np.linspace(-1, 1, images.shape[1])
    return _as_pixels(images * ramp[:, None, None])


def equalised(images: np.ndarray) -> np.ndarray:
    """Histogram equalisation: every grey level is about as frequent as any other."""
    levels = np.arange(257)
    below = [np.histogram(image, bins=levels)[0].cumsum() / image.size for image in images]
    return np.stack(
        [_as_pixels(255 * share[image]) for share, image in zip(below, images, strict=True)]
    )


def blurred(images: np.ndarray) -> np.ndarray:
    """Gaussian blur with a standard deviation of a 150th of the side."""
    sigma = images.shape[1] / 150
    smooth = ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0))
    return _as_pixels(smooth)


def noisy(images: np.ndarray, spread: float = 12.0) -> np.ndarray:
    """Gaussian noise of so many grey levels, pixel by pixel; the same on every image."""
    noise = np.random.default_rng(0).normal(0, spread, images.shape[1:])
    return _as_pixels(images + noise)


def _as_pixels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


SHIFTS: dict[str, Shift] = {
    "framed lower": lambda images: framed(images, height=1 / ASPECT),
    "framed wider": lambda images: framed(images, width=ASPECT),
    "framed narrower": lambda images: framed(images, width=1 / ASPECT),
    "framed higher": lambda images: framed(images, height=ASPECT),
    "closer": lambda images: framed(images, width=0.85, height=0.85),
    "farther": lambda images: framed(images, width=1.15, height=1.15),
    "brighter": lambda images: gamma(images, 0.6),
    "darker": lambda images: gamma(images, 1.6),
    "lit from below": lit_from_below,
    "equalised": equalised,
    "blurred": blurred,
    "noisy": noisy,
}
