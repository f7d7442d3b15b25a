"""Resize a decoded image to the square that a network sees, in training and serving alike."""

import tensorflow as tf


def resize_to_square(image: tf.Tensor, sides: tf.Tensor, size: int) -> tf.Tensor:
    """Squash an image uint8 [H, W, C] to float32 [size, size, C] with an antialiased filter.

    sides: height and width before rounding, float32 [2]: fractional if a decoder downscaled the
    image and rounded its sides up.
    """
    # The op behind `tf.image.resize`, which itself takes integer sides only.
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[size, size],
        scale=size / sides,
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )[0]
