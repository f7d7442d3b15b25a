"""Images as they would be elsewhere: framed, exposed or stored otherwise, one change at a time.

    shifted = SHIFTS["framed wider"](images)       # uint8 [N, S, S, 1] -> the same

A stand-in for the images of another hospital. Every number is fixed, so that models are compared
under the same conditions; several lie outside of what a classifier is trained under.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from scipy import ndimage

from cxr_tf.data.pipeline import affine

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
