"""Augmentation of training batches: random exposure, framing and cutout."""

import tensorflow as tf

# Number of random numbers per augmented image.
AUGMENTATION_DRAWS = 14

# Largest log scale of width and height, and its limit at a strength above 1.
FRAMING, MAX_FRAMING = 0.15, 0.2


def augmentation_draws(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Return the random numbers of an epoch's augmentations: float32 [count, 14] in -1..1."""
    return tf.random.stateless_uniform([count, AUGMENTATION_DRAWS], seed, -1.0, 1.0)


def augment(
    images: tf.Tensor, draws: tf.Tensor, strength: float = 1.0, *, framing: float = FRAMING
) -> tf.Tensor:
    """Augment a batch in exposure, position and cutout; returns float32 [B, S, S, 1].

    images: uint8 or float32 [B, S, S, 1] in 0..255. draws: float32 [B, 14] in -1..1, which
    determine the result. strength: scales every range, that of the framing to 22 % at most.
    framing: largest log scale of width and height.

    At strength 1: rotation up to 4 degrees; width and height scaled independently by up to 16 %;
    shift up to 4 %; gamma 0.79 to 1.27; contrast and brightness up to 12 %; fine detail (what a 3x3
    blur removes) 0.2 to 1.8 times; 3 in 10 images have a square of 10 to 30 % of the side covered.
    No flips: the heart is on the left, and chest X-rays are never taken upside down.

    The framing varies this much because it is a shortcut. In the Kermany data the radiographs of
    healthy children are 1.2 times as wide as high, those of sick ones 1.5 times; squashed to a
    square, a healthy chest framed like a sick one is classified as sick.
    """
    images = tf.cast(images, tf.float32)
    size = images.shape[1]
    u = [draws[:, i] * strength for i in range(AUGMENTATION_DRAWS)]
    # A quarter are not moved. Interpolation blurs, and a network trained on blurred images only
    # classifies every sharp one as healthy.
    moved = tf.cast(draws[:, 12] < 0.5, tf.float32)
    scaled = min(framing * strength, MAX_FRAMING) * moved
    images = affine(
        images,
        angle=0.07 * u[0] * moved,
        scale_x=tf.exp(scaled * draws[:, 1]),
        scale_y=tf.exp(scaled * draws[:, 2]),
        shift_x=0.04 * size * u[3] * moved,
        shift_y=0.04 * size * u[4] * moved,
    )

    def per_image(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, 1, 1, 1])

    # Sharpness depends on the scanner and the file format, not on the patient.
    detail = images - binomial_blur(images)
    images += per_image(tf.clip_by_value(0.8 * u[13], -1.0, 2.0)) * detail
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
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
