"""Augmentation of training batches: random exposure, framing and cutout."""

import tensorflow as tf

# Number of random numbers per augmented image.
AUGMENTATION_DRAWS = 14

# Largest log scale of width and height, and its limit at a strength above 1.
FRAMING, MAX_FRAMING = 0.15, 0.2

# Largest log scale on top of a framing that is taken from another radiograph.
FRAMING_JITTER = 0.08

# Strongest light from a border, in standard deviations of the image.
BORDER_LIGHT = 0.4


def augmentation_draws(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Return the random numbers of an epoch's augmentations: float32 [count, 14] in -1..1."""
    return tf.random.stateless_uniform([count, AUGMENTATION_DRAWS], seed, -1.0, 1.0)


def augment(
    images: tf.Tensor,
    draws: tf.Tensor,
    strength: float = 1.0,
    *,
    framing: float = FRAMING,
    chests: tuple[tf.Tensor, tf.Tensor] | None = None,
    light: tf.Tensor | None = None,
) -> tf.Tensor:
    """Augment a batch in exposure, position and cutout; returns float32 [B, S, S, 1].

    images: uint8 or float32 [B, S, S, 1] in 0..255. draws: float32 [B, 14] in -1..1, which
    determine the result. strength: scales every range, that of the framing to 22 % at most.
    framing: largest log scale of width and height. chests: float32 [B, 3] each, width, height and
    position of the chest (`acquisition_statistics.align`) in the image, and in the radiograph whose
    framing it is given instead of a random one; see `training_batches`. light: float32 [B, 4] in
    -1..1, light from the top, bottom, left and right border; none by default.

    At strength 1: rotation up to 4 degrees; width and height scaled independently by up to 16 %;
    shift up to 4 %; gamma 0.79 to 1.27; contrast and brightness up to 12 %; fine detail (what a 3x3
    blur removes) 0.2 to 1.8 times; 3 in 10 images have a square of 10 to 30 % of the side covered.
    No flips: the heart is on the left, and chest X-rays are never taken upside down.

    The framing varies this much because it is a shortcut. In the Kermany data the radiographs of
    healthy children are 1.2 times as wide as high, those of sick ones 1.5 times; squashed to a
    square, a healthy chest framed like a sick one is classified as sick. With `chests`, the framing
    is independent of the class.
    """
    images = tf.cast(images, tf.float32)
    size = images.shape[1]
    u = [draws[:, i] * strength for i in range(AUGMENTATION_DRAWS)]
    # A quarter are not moved. Interpolation blurs, and a network trained on blurred images only
    # classifies every sharp one as healthy.
    moved = tf.cast(draws[:, 12] < 0.5, tf.float32)
    scaled = min(framing * strength, MAX_FRAMING) * moved
    if chests is None:
        images = affine(
            images,
            angle=0.07 * u[0] * moved,
            scale_x=tf.exp(scaled * draws[:, 1]),
            scale_y=tf.exp(scaled * draws[:, 2]),
            shift_x=0.04 * size * u[3] * moved,
            shift_y=0.04 * size * u[4] * moved,
        )
    else:
        own, target = (min(strength, 1.0) * chest for chest in chests)
        jitter = min(FRAMING_JITTER * strength, MAX_FRAMING)
        scale_y = tf.exp(own[:, 1] - target[:, 1] + jitter * draws[:, 2])
        images = affine(
            images,
            angle=0.07 * u[0],
            scale_x=tf.exp(own[:, 0] - target[:, 0] + jitter * draws[:, 1]),
            scale_y=scale_y,
            shift_x=0.04 * size * u[3],
            shift_y=size * (own[:, 2] - scale_y * target[:, 2]) + 0.02 * size * u[4],
            # Black margins would appear in one class only, the one that is framed more closely.
            fill_mode="REFLECT",
        )

    def per_image(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, 1, 1, 1])

    # Sharpness depends on the scanner and the file format, not on the patient.
    detail = images - binomial_blur(images)
    images += per_image(tf.clip_by_value(0.8 * u[13], -1.0, 2.0)) * detail
    if light is not None:
        images = light_borders(images, BORDER_LIGHT * strength * light)
    images = 255.0 * tf.pow(
        tf.clip_by_value(images / 255.0, 0.0, 1.0), per_image(tf.exp(0.24 * u[5]))
    )
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    images = (images - mean) * per_image(tf.exp(0.12 * u[6])) + mean + per_image(15.0 * u[7])
    images = tf.clip_by_value(images, 0.0, 255.0)

    # Position and size come from the unscaled draws; strength affects the frequency only.
    half = per_image(size * (0.10 + 0.05 * draws[:, 8]))
    centre_y = per_image(size * (draws[:, 9] + 1.0) / 2.0)
    centre_x = per_image(size * (draws[:, 10] + 1.0) / 2.0)
    axis = tf.range(size, dtype=tf.float32)
    covered = (tf.abs(axis[None, :, None, None] - centre_y) < half) & (
        tf.abs(axis[None, None, :, None] - centre_x) < half
    )
    covered &= per_image(draws[:, 11]) < 0.6 * strength - 1.0
    return tf.where(covered, mean, images)


def light_borders(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Add light that fades from each border inwards; float32 [B, S, S, 1] -> the same.

    amounts: float32 [B, 4], at the top, bottom, left and right border, in standard deviations of
    the image; below 0 it darkens. It fades to a third within 12 % of the side.
    """
    size = images.shape[1]
    fading = tf.exp(-tf.range(size, dtype=tf.float32) / (0.12 * size))
    down, right = fading[None, :, None, None], fading[None, None, :, None]
    top, bottom, left_side, right_side = (
        tf.reshape(amounts[:, k], [-1, 1, 1, 1]) for k in range(4)
    )
    added = top * down + bottom * down[:, ::-1] + left_side * right + right_side * right[:, :, ::-1]
    spread = tf.math.reduce_std(images, axis=[1, 2, 3], keepdims=True)
    return images + added * spread


def binomial_blur(images: tf.Tensor) -> tf.Tensor:
    """Blur [B, S, S, 1], float32, with a 3x3 binomial kernel; borders are mirrored."""
    # By sums: the last bits of a convolution depend on the number of threads, and a resumed run
    # must see the same pixels.
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
    fill_mode: str = "CONSTANT",
) -> tf.Tensor:
    """Transform [B, S, S, C] by an affine map about the centre; outside of the image is 0.

    All parameters float32 [B]: angle in radians, shifts in pixels, scales above 1 zoom out.
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
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode=fill_mode,
        fill_value=0.0,
    )
