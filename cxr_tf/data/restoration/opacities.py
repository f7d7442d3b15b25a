"""Training pairs for restoration: healthy radiographs with opacities painted into the lungs.

    lungs = lung_fields(images)                                  # uint8 [N, S, S, 1]
    for painted, targets in restoration_batches(images, lungs, ...):   # [B, S, S, 1]

A network that restores the healthy image learns the appearance of lungs without opacities, and
needs no abnormal image for it. The opacities are smooth on purpose: with sharp synthetic textures
the network learns to detect the texture, and misses the haze of real pneumonia.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cxr_tf.data.augmentation import CUTOUT_DRAW, affine, augmentation_draws, vary_acquisition
from cxr_tf.data.batches import steps_per_epoch
from cxr_tf.data.restoration.local_contrast import local_contrast
from cxr_tf.data.tf_data import PARALLEL, no_autograph, prefetch

# A function of healthy images and lungs [B, S, S, 1], and a seed, int64 [2] -> (painted, targets).
Pair = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, dict[str, tf.Tensor]]]

# Share of images with opacities; the others teach the network to leave healthy lungs unchanged.
PAINTED_SHARE = 0.8

# Rise in local contrast, in standard deviations, at which the lesion mask is 1.
FULL_MASK_RISE = 0.25


def standardised(images: tf.Tensor) -> tf.Tensor:
    """Standardise each image [N, S, S, 1] in 0..255 to mean 0 and standard deviation 1, float32.

    A blank image stays blank.
    """
    mean, spread = _moments(tf.cast(images, tf.float32))
    return (tf.cast(images, tf.float32) - mean) / spread


def _moments(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean, tf.math.reduce_std(images, axis=[1, 2, 3], keepdims=True) + 1.0


def lung_fields(images: np.ndarray) -> np.ndarray:
    """Segment the lungs of healthy, roughly centred radiographs by darkness, as soft masks.

    images: uint8 [N, S, S, 1]. Returns uint8 [N, S, S, 1], 0 outside to 255 inside.

    Candidates are dark regions on both sides of the centre line. In some images the lungs are
    separate from the dark air beside the body; the mean of the masks of these images restricts the
    candidates in all images. An image with too few candidate pixels gets the mean as its mask.
    """
    from scipy import ndimage

    size = images.shape[1]
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    u, v = np.meshgrid(axis, axis)

    def both_sides(offset: float, width: float, height: float) -> np.ndarray:
        right = np.hypot((u + offset) / width, (v + 0.05) / height)
        left = np.hypot((u - offset) / width, (v + 0.05) / height)
        return np.minimum(right, left) < 1

    around, core = both_sides(0.42, 0.46, 0.75), both_sides(0.38, 0.25, 0.50)
    blurred = [ndimage.gaussian_filter(x[..., 0].astype(np.float32), size / 45) for x in images]
    dark = [b < b[core].mean() + 0.45 * b[core].std() for b in blurred]

    separate = []
    for regions in dark:
        opened = ndimage.binary_opening(regions & around, iterations=max(1, size // 56))
        labels, count = ndimage.label(opened)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        in_core = np.bincount(labels[core], minlength=count + 1)
        kept = np.flatnonzero((areas >= 0.02 * size**2) & (in_core >= 0.5 * areas))
        mask = np.isin(labels, kept[kept > 0])
        if min(mask[:, : size // 2].sum(), mask[:, size // 2 :].sum()) > 0.03 * size**2:
            separate.append(mask)
    # The mean of too few masks would be the outline of individual chests.
    mean = np.mean(separate, axis=0) if len(separate) >= 5 else core.astype(float)
    mean = ndimage.gaussian_filter(mean, size / 56)

    fields = np.zeros_like(images)
    for field, regions in zip(fields, dark, strict=True):
        lungs = ndimage.binary_opening(regions & (mean > 0.25), iterations=max(1, size // 112))
        lungs = ndimage.binary_closing(lungs, iterations=max(1, size // 28))
        soft = ndimage.gaussian_filter(lungs.astype(np.float32), size / 75)
        soft = np.clip(soft, 0, 1) * np.clip(mean / 0.3, 0, 1)
        if soft.sum() < 0.5 * (mean > 0.5).sum():
            soft = np.clip(1.3 * mean - 0.15, 0, 1)
        field[..., 0] = np.round(255 * soft)
    return fields


def restoration_batches(
    images: np.ndarray,
    lungs: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epochs: range,
    strength: float = 1.0,
    pair: Pair | None = None,
) -> tf.data.Dataset:
    """Return the batches (painted, targets) of the given epochs, in local contrast.

    images, lungs: uint8 [N, S, S, 1]. painted: float32 [B, S, S, 1]. targets: a dict of float32
    [B, S, S, 1]: "residual", the excess over the healthy image in standard deviations of the
    surroundings, and "lesion_mask", the painted region in 0..1. pair: a function to use instead of
    `restoration_pair`.

    Everything depends only on seed, epoch and step, so that a resumed run sees the same batches.
    The last, incomplete batch of an epoch is dropped.
    """
    n, size = images.shape[:2]
    steps = steps_per_epoch(n, batch_size)

    @no_autograph
    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        rows = tf.random.experimental.stateless_shuffle(
            tf.range(n, dtype=tf.int64), seed=epoch_seed
        )[: steps * batch_size]
        draws = tf.gather(augmentation_draws(n, epoch_seed), rows)
        numbers = tf.range(steps, dtype=tf.int64) + epoch * steps
        batches = tf.data.Dataset.from_tensor_slices((rows, draws)).batch(batch_size)
        return tf.data.Dataset.zip((batches, tf.data.Dataset.from_tensor_slices(numbers)))

    @no_autograph
    def gather(batch: tuple[tf.Tensor, tf.Tensor], number: tf.Tensor) -> tuple:
        rows, draws = batch
        chosen = tf.numpy_function(
            lambda r: (images[r], lungs[r]), [rows], [tf.uint8, tf.uint8], stateful=False
        )
        shape = [batch_size, size, size, 1]
        return *(tf.ensure_shape(x, shape) for x in chosen), draws, number

    @no_autograph
    def finish(image: tf.Tensor, lung: tf.Tensor, draws: tf.Tensor, number: tf.Tensor) -> tuple:
        image, lung = reframe(image, lung, draws, strength)
        healthy = vary_acquisition(image, _exposure_only(draws), strength, framing=0.0)
        return (pair or restoration_pair)(
            healthy, lung, tf.stack([tf.constant(seed, tf.int64), number])
        )

    stream = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(order)
    stream = stream.map(gather, num_parallel_calls=2)
    return prefetch(stream.map(finish, num_parallel_calls=PARALLEL))


def restoration_pair(
    healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Return (painted, targets) for one batch, as `restoration_batches` does.

    healthy: [B, S, S, 1] in 0..255. lungs: [B, S, S, 1] in 0..1. seed: int64 [2]. Painting also
    changes the local contrast next to an opacity, as a real opacity does.
    """
    return contrast_pair(healthy, paint(healthy, lungs, seed))


def contrast_pair(healthy: tf.Tensor, painted: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Return (painted, targets) in local contrast; images [B, S, S, 1] in 0..255."""
    return as_pair(local_contrast(healthy), local_contrast(painted))


def as_pair(healthy: tf.Tensor, painted: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Return (painted, targets) for images float32 [B, S, S, 1] in the scale of the network."""
    residual = painted - healthy
    lesion_mask = tf.clip_by_value(residual / FULL_MASK_RISE, 0.0, 1.0)
    return painted, {"residual": residual, "lesion_mask": lesion_mask}


def reframe(
    images: tf.Tensor, lungs: tf.Tensor, draws: tf.Tensor, strength: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Vary the framing of images and lungs by columns 0 to 4 and 12 of the draws: float32 each.

    The framing varies much more than for a classifier: sick children are framed differently from
    healthy ones, which an autoencoder trained on healthy images must not detect as an anomaly. At
    strength 1: rotation up to 5 degrees, 0.7 to 1.1 times the field of view, aspect changed by up
    to 20 %, shift up to 6 %; a quarter of the images are not moved.
    """
    moved = tf.cast(draws[:, 12] < 0.5, tf.float32) * strength
    field = tf.exp(moved * (0.22 * draws[:, 1] - 0.13))
    aspect = tf.exp(moved * 0.1 * draws[:, 2])
    size = images.shape[1]
    transform = {
        "angle": 0.08 * moved * draws[:, 0],
        "scale_x": field * aspect,
        "scale_y": field / aspect,
        "shift_x": 0.06 * size * moved * draws[:, 3],
        "shift_y": 0.06 * size * moved * draws[:, 4],
    }
    return (
        affine(tf.cast(images, tf.float32), **transform),
        affine(tf.cast(lungs, tf.float32) / 255.0, **transform),
    )


def _exposure_only(draws: tf.Tensor) -> tf.Tensor:
    """Return the draws without position (see `reframe`) and cutout (which resembles a lesion)."""
    keep = np.ones(draws.shape[1], np.float32)
    keep[:5] = 0.0
    uncovered = np.zeros(draws.shape[1], np.float32)
    keep[CUTOUT_DRAW], uncovered[CUTOUT_DRAW] = 0.0, 1.0
    return draws * keep + uncovered


def paint(
    healthy: tf.Tensor,
    lungs: tf.Tensor,
    seed: tf.Tensor,
    *,
    softness: float = 1.0,
    extent: float = 1.0,
) -> tf.Tensor:
    """Paint opacities into the lungs of about four images in five: float32 [B, S, S, 1] in 0..255.

    healthy: float32 [B, S, S, 1] in 0..255; lungs: float32 [B, S, S, 1] in 0..1, outside of which
    nothing changes; seed: int64 [2], which determines the opacities; softness and extent: see
    `opacity_regions`.

    A region is raised towards the brightness of soft tissue, or overlaid with the tissue of another
    image of the batch. Half of the fine structure stays visible, as in a real consolidation.
    """
    batch, size = tf.shape(healthy)[0], healthy.shape[1]
    fold = tf.random.experimental.stateless_fold_in
    uniform = functools.partial(_uniform, batch, seed)
    region, kind = opacity_regions(batch, size, seed, softness=softness, extent=extent)
    region *= lungs * tf.cast(uniform(23, 0.0, 1.0) < PAINTED_SHARE, tf.float32)
    middle, fine = (_noise(batch, size, seed, k, cells) for k, cells in ((2, 10), (3, 28)))

    # ------------------------------------------------------------------ density
    # A haze over both lungs is less dense than a consolidation.
    strength = uniform(24, 0.15, 0.90) * tf.where(kind < 0.72, 1.0, 0.65)
    mottled = 1.0 + 0.15 * fine + 0.10 * middle
    opacity = tf.clip_by_value(strength * region * mottled, 0.0, 1.0)
    mean, spread = _moments(healthy)
    outside = 1.0 - lungs
    tissue = tf.reduce_sum(healthy * outside, axis=[1, 2, 3], keepdims=True) / tf.reduce_sum(
        outside, axis=[1, 2, 3], keepdims=True
    )
    tissue += 0.6 * spread
    background = 0.5 * (healthy + _smooth(healthy))
    solid = healthy + opacity * tf.maximum(tissue - background, 0.0)

    # Tissue of another image has the texture of a real radiograph, unlike noise.
    shift = tf.random.stateless_uniform([2], fold(seed, 30)) - 0.5
    other = tf.roll(healthy, 1, axis=0)
    other = tf.roll(other, tf.cast(shift * [0.9 * size, 0.5 * size], tf.int32), axis=[1, 2])
    other_mean, other_spread = _moments(other)
    other = (other - other_mean) / other_spread * spread + mean
    dense = uniform(25, 0.20, 0.90) * region
    grafted = healthy + dense * tf.maximum(other - background, 0.0)
    return tf.minimum(tf.where(uniform(26, 0.0, 1.0) < 0.4, grafted, solid), 255.0)


def opacity_regions(
    batch: tf.Tensor, size: int, seed: tf.Tensor, *, softness: float = 1.0, extent: float = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw the regions of opacities, float32 [B, size, size, 1] in 0..1.2, and the kind of each.

    By its kind, float32 [B, 1, 1, 1] in 0..1, a region consists of smooth blobs (below 0.35), a
    focus (below 0.60), a lobe or a whole lung (below 0.72), or covers both lungs. softness: factor
    for the width of edges; extent: factor for the width of blobs, foci and the clouds of the last
    kind, without widening their edges.
    """
    uniform = functools.partial(_uniform, batch, seed)
    coarse = _noise(batch, size, seed, 1, 5, extent)
    middle = _noise(batch, size, seed, 2, 10, extent)
    axis = (tf.range(size, dtype=tf.float32) + 0.5) / size
    y, x = axis[None, :, None, None], axis[None, None, :, None]

    # Stretching widens the edges as well.
    soft = softness / extent
    edge = soft * uniform(11, 0.05, 0.5)
    blobs = tf.sigmoid((0.7 * coarse + 0.4 * middle - uniform(10, -0.6, 1.5)) / edge)
    row, column = uniform(12, 0.15, 0.85), uniform(13, 0.1, 0.9)
    height, width = extent * uniform(14, 0.07, 0.30), extent * uniform(15, 0.07, 0.25)
    distance = tf.sqrt(((y - row) / height) ** 2 + ((x - column) / width) ** 2)
    focus = tf.sigmoid((1.0 - distance - 0.25 * middle) / (soft * uniform(16, 0.05, 0.30)))
    fissure = row + (x - 0.5) * uniform(17, -0.5, 0.5)
    above = tf.sign(uniform(18, -1.0, 1.0))
    one_side = tf.cast((x < 0.5) == (uniform(19, 0.0, 1.0) < 0.5), tf.float32)
    lobe = tf.sigmoid((y - fissure) * above / (softness * uniform(20, 0.01, 0.10)))
    lobe *= tf.where(uniform(21, 0.0, 1.0) < 0.7, one_side, tf.ones_like(one_side))
    diffuse = tf.clip_by_value(0.75 + 0.3 * coarse, 0.3, 1.2)
    kind = uniform(22, 0.0, 1.0)
    region = tf.where(
        kind < 0.35, blobs, tf.where(kind < 0.60, focus, tf.where(kind < 0.72, lobe, diffuse))
    )
    return region, kind


def _uniform(batch: tf.Tensor, seed: tf.Tensor, stream: int, low: float, high: float) -> tf.Tensor:
    """Draw one number per image, float32 [B, 1, 1, 1]."""
    stream_seed = tf.random.experimental.stateless_fold_in(seed, stream)
    drawn = tf.random.stateless_uniform([batch, 1, 1, 1], stream_seed)
    return low + (high - low) * drawn


def _noise(
    batch: tf.Tensor, size: int, seed: tf.Tensor, stream: int, cells: int, extent: float = 1.0
) -> tf.Tensor:
    """Draw smooth noise of mean 0 and standard deviation 1, float32 [B, size, size, 1].

    cells: number of clouds per side; extent: factor for their width.
    """
    drawn = math.ceil(cells / extent)
    stream_seed = tf.random.experimental.stateless_fold_in(seed, stream)
    coarse = tf.random.stateless_normal([batch, drawn, drawn, 1], stream_seed)
    side = max(size, round(size * drawn * extent / cells))
    field = tf.image.resize(coarse, [side, side], method="bicubic")[:, :size, :size]
    mean, spread = tf.nn.moments(field, axes=[1, 2, 3], keepdims=True)
    return (field - mean) * tf.math.rsqrt(spread + 1e-6)


def _smooth(images: tf.Tensor) -> tf.Tensor:
    """Remove structures finer than a fourteenth of the side; [B, S, S, 1]."""
    size = images.shape[1]
    coarse = tf.image.resize(images, [14, 14], antialias=True)
    return tf.image.resize(coarse, [size, size], method="bicubic")
