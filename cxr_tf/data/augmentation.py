"""Augmentation of training batches: random framing, sharpness, exposure and cutout.

    draws = augmentation_draws(count, seed)                     # float32 [count, 24] in -1..1
    images = augment(images, draws)                             # from pretrained weights
    images = vary_acquisition(images, draws)                    # milder: from scratch

How a radiograph is framed, exposed and processed differs between hospitals, and in the Kermany data
between the classes: radiographs of healthy children are 1.2 times as wide as high, those of sick
ones 1.5 times, so that a healthy chest looks flatter when squashed to a square. A network learns
that shortcut unless training varies these properties by more than the classes differ in them.
"""

import itertools

import tensorflow as tf

# Random numbers per image: for `vary_acquisition` with the cutout, for what `augment` adds, and for
# its margins and the choice between strong and mild.
ACQUISITION_DRAWS, ADDED_DRAWS, CHOICE_DRAWS = 14, 8, 2
AUGMENTATION_DRAWS = ACQUISITION_DRAWS + ADDED_DRAWS + CHOICE_DRAWS

# Column of the draw that decides on the cutout; 1 means none.
CUTOUT_DRAW = 11

# Largest log scale of width and height, and its limit at a strength above 1.
FRAMING, MAX_FRAMING = 0.25, 0.3
MILD_FRAMING, MAX_MILD_FRAMING = 0.15, 0.2

# Share of images that get margins on all sides, as in a scan of a film or a screenshot, and the
# largest log scale of these images: the radiograph fills 60 % of the side or more.
MARGINS, MARGIN_SCALE = 0.1, 0.51

# Sides in pixels to which an image is reduced to separate its bands of detail.
BAND_SIDES = (32, 16, 8)

# Largest depth of a covered strip along the upper or lower border, as a share of the side.
STRIP = 0.18


def augmentation_draws(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Return the random numbers of an epoch's augmentations: float32 [count, 24] in -1..1."""
    # One seed per group, so that a group can be added without changing the numbers of the others.
    seeds = [tf.cast(seed, tf.int64) + tf.constant([k << 40, 0], tf.int64) for k in range(3)]
    groups = (ACQUISITION_DRAWS, ADDED_DRAWS, CHOICE_DRAWS)
    return tf.concat(
        [
            tf.random.stateless_uniform([count, width], group_seed, -1.0, 1.0)
            for width, group_seed in zip(groups, seeds, strict=True)
        ],
        axis=1,
    )


def augment(images: tf.Tensor, draws: tf.Tensor, strength: float = 1.0) -> tf.Tensor:
    """Augment a batch, for training from pretrained weights: float32 [B, S, S, 1].

    images: uint8 or float32 [B, S, S, 1] in 0..255. draws: float32 [B, 24] in -1..1, which
    determine the result. strength: scales every range; width and height change by 35 % at most
    before margins are added.

    Half of the images are varied as by `vary_acquisition`, because real radiographs differ by less,
    and the other half strongly. Strongly, at strength 1: rotation up to 4 degrees; width and height
    scaled independently by up to 28 %; shift up to 4 % horizontally and 6 % vertically; the area
    outside the image is black, or its mirror image; 1 of 10 images also reduced to 60 to 100 % of
    the side, with black margins; fine detail (what a 3x3 blur removes) 0.2 to 1.8 times; three
    bands of coarser detail 0.7 to 1.4 times; gamma 0.79 to 1.27; contrast and brightness up to
    12 %; a vertical gradient of brightness up to 20 %. In 3 of 10 images a square of 10 to 30 % of
    the side is covered; in 1 of 4 a strip along the upper border, and in 1 of 4 one along the lower
    border. No flips: the heart is on the left, and chest X-rays are never taken upside down.
    """
    images = tf.cast(images, tf.float32)
    size = images.shape[1]
    u = draws * strength
    strong = draws[:, 23] <= 0.0
    amount = tf.cast(strong, tf.float32)  # 0: nothing that `vary_acquisition` does not do
    # One strongly varied image in ten stays in place, and the others are sharpened: interpolation
    # blurs, and a network trained only on blurred images classifies every sharp one as healthy.
    moved = tf.cast(draws[:, 12] < tf.where(strong, 0.8, 0.5), tf.float32)
    margins = _margins(draws[:, 22], strength) * amount
    images = _move(
        images,
        draws,
        moved,
        strength,
        scale=tf.where(
            strong,
            min(FRAMING * strength, MAX_FRAMING),
            min(MILD_FRAMING * strength, MAX_MILD_FRAMING),
        ),
        down=tf.where(strong, 0.06, 0.04),
        mirrored=strong & (draws[:, 14] < 0.0) & (margins == 0.0),
        margins=margins,
    )
    images = _sharpen(
        images,
        tf.clip_by_value(0.8 * u[:, 13], -1.0, 2.0) + 0.3 * min(strength, 1.0) * moved * amount,
    )
    gains = tf.clip_by_value(0.35 * u[:, 15:18] * amount[:, None], -0.6, 0.6)
    images = _scale_bands(images, tf.exp(gains))
    images, mean = _expose(images, u)
    ramp = tf.linspace(-1.0, 1.0, size)[None, :, None, None]
    gradient = 0.2 * _per_image(u[:, 18] * amount) * ramp
    images = tf.clip_by_value(images * (1.0 + gradient), 0.0, 255.0)
    images = _cut_out(images, mean, draws, strength)

    rows = tf.range(size, dtype=tf.float32)[None, :, None, None]
    covered = tf.maximum(draws[:, 19:21] - 1.0 + 0.5 * strength, 0.0) / max(0.5 * strength, 1e-6)
    covered = tf.minimum(covered, 1.0) * amount[:, None]
    top, bottom = (_per_image(size * STRIP * covered[:, k]) for k in (0, 1))
    gray = tf.clip_by_value(128.0 + 190.0 * _per_image(draws[:, 21]), 0.0, 255.0)
    return tf.where((rows < top) | (rows >= size - bottom), gray, images)


def vary_acquisition(
    images: tf.Tensor, draws: tf.Tensor, strength: float = 1.0, *, framing: float = MILD_FRAMING
) -> tf.Tensor:
    """Vary framing, sharpness and exposure of a batch; returns float32 [B, S, S, 1].

    images: uint8 or float32 [B, S, S, 1] in 0..255. draws: float32 [B, 14 or more] in -1..1, which
    determine the result. strength: scales every range; the framing changes by 22 % at most.
    framing: largest log scale of width and height at strength 1.

    Used for training from scratch, which learns little in its first epochs under `augment`, and for
    perturbed copies.

    At strength 1: rotation up to 4 degrees; shift up to 4 %; fine detail, gamma, contrast,
    brightness and covered squares as in `augment`.
    """
    images = tf.cast(images, tf.float32)
    u = draws * strength
    moved = tf.cast(draws[:, 12] < 0.5, tf.float32)
    scale = min(framing * strength, MAX_MILD_FRAMING)
    images = _move(images, draws, moved, strength, scale=scale, down=0.04)
    images = _sharpen(images, tf.clip_by_value(0.8 * u[:, 13], -1.0, 2.0))
    images, mean = _expose(images, u)
    return _cut_out(images, mean, draws, strength)


def _per_image(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [-1, 1, 1, 1])


def _move(
    images: tf.Tensor,
    draws: tf.Tensor,
    moved: tf.Tensor,
    strength: float,
    *,
    scale: float | tf.Tensor,
    down: float | tf.Tensor,
    mirrored: tf.Tensor | None = None,
    margins: float | tf.Tensor = 0.0,
) -> tf.Tensor:
    """Rotate, scale and shift images; moved: float32 [B], 0 for an image that stays in place.

    scale: largest log scale of width and height; down: largest vertical shift, as a share of the
    side; both for all images or [B]. mirrored: bool [B], whether the area outside an image is its
    mirror image instead of black.
    margins: float32 [B], log scale added to both sides.
    """
    size = images.shape[1]
    geometry = {
        "angle": 0.07 * strength * draws[:, 0] * moved,
        "scale_x": tf.exp(moved * (scale * draws[:, 1] + margins)),
        "scale_y": tf.exp(moved * (scale * draws[:, 2] + margins)),
        "shift_x": 0.04 * size * strength * draws[:, 3] * moved,
        "shift_y": down * size * strength * draws[:, 4] * moved,
    }
    if mirrored is None:
        return affine(images, **geometry)
    inside = affine(tf.ones_like(images), **geometry)
    images = affine(images, **geometry, mirrored=True)
    return tf.where(_per_image(mirrored), images, images * inside)


def _margins(draws: tf.Tensor, strength: float) -> tf.Tensor:
    """Return the log scale [B] of margins: 0 for most images, which have none."""
    width = 2.0 * MARGINS * min(strength, 1.0)
    return MARGIN_SCALE * tf.maximum(draws - 1.0 + width, 0.0) / max(width, 1e-6)


def _sharpen(images: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Add `gain` [B] times the fine detail, which depends on the scanner and the file format."""
    return images + _per_image(gain) * (images - binomial_blur(images))


def _scale_bands(images: tf.Tensor, gains: tf.Tensor) -> tf.Tensor:
    """Multiply the three bands of detail that `BAND_SIDES` separate by gains [B, 3]."""
    size = images.shape[1]

    def reduced(side: int) -> tf.Tensor:
        small = tf.image.resize(images, [side, side], antialias=True)
        return tf.image.resize(small, [size, size])

    levels = [images, *map(reduced, BAND_SIDES)]
    return levels[-1] + sum(
        _per_image(gains[:, k]) * (fine - coarse)
        for k, (fine, coarse) in enumerate(itertools.pairwise(levels))
    )


def _expose(images: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Vary gamma, contrast and brightness; return the images, and their mean after gamma only."""
    images = 255.0 * tf.pow(
        tf.clip_by_value(images / 255.0, 0.0, 1.0), _per_image(tf.exp(0.24 * u[:, 5]))
    )
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    contrast, brightness = tf.exp(0.12 * u[:, 6]), 15.0 * u[:, 7]
    images = (images - mean) * _per_image(contrast) + mean + _per_image(brightness)
    return tf.clip_by_value(images, 0.0, 255.0), mean


def _cut_out(images: tf.Tensor, mean: tf.Tensor, draws: tf.Tensor, strength: float) -> tf.Tensor:
    """Cover a square of some images with their mean."""
    size = images.shape[1]
    # Position and size come from the unscaled draws; strength affects only how often it happens.
    half = _per_image(size * (0.10 + 0.05 * draws[:, 8]))
    centre_y = _per_image(size * (draws[:, 9] + 1.0) / 2.0)
    centre_x = _per_image(size * (draws[:, 10] + 1.0) / 2.0)
    axis = tf.range(size, dtype=tf.float32)
    covered = (tf.abs(axis[None, :, None, None] - centre_y) < half) & (
        tf.abs(axis[None, None, :, None] - centre_x) < half
    )
    covered &= _per_image(draws[:, CUTOUT_DRAW]) < 0.6 * strength - 1.0
    return tf.where(covered, mean, images)


def binomial_blur(images: tf.Tensor) -> tf.Tensor:
    """Blur [B, S, S, 1], float32, with a 3x3 binomial kernel; borders are mirrored."""
    # Computed with sums, because the last bits of a convolution depend on the number of threads,
    # and a resumed run must see the same pixels.
    x = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")
    x = (x[:, :-2] + 2.0 * x[:, 1:-1] + x[:, 2:]) / 4.0
    return (x[:, :, :-2] + 2.0 * x[:, :, 1:-1] + x[:, :, 2:]) / 4.0


def affine(
    images: tf.Tensor,
    *,
    angle: tf.Tensor,
    scale_x: tf.Tensor,
    scale_y: tf.Tensor,
    shift_x: tf.Tensor,
    shift_y: tf.Tensor,
    mirrored: bool = False,
) -> tf.Tensor:
    """Transform images [B, S, S, C] by an affine map about the centre.

    The parameters are float32 [B]: angle in radians, shifts in pixels, scales, which zoom out above
    1. The area outside an image is 0, or its mirror image if `mirrored`.
    """
    centre = (images.shape[1] - 1) / 2
    a, b = tf.cos(angle) * scale_x, -tf.sin(angle) * scale_y
    c, d = tf.sin(angle) * scale_x, tf.cos(angle) * scale_y
    zero = tf.zeros_like(a)
    # Rows of the projective transform that maps output pixels to input pixels.
    transforms = tf.stack(
        [
            *(a, b, centre - (a + b) * centre + shift_x),
            *(c, d, centre - (c + d) * centre + shift_y),
            *(zero, zero),
        ],
        axis=1,
    )
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="REFLECT" if mirrored else "CONSTANT",
        fill_value=0.0,
    )
    return tf.ensure_shape(moved, images.shape)
