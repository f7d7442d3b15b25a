"""MixStyle: in training, feature maps take on the mean and spread of another radiograph's.

    trainer = mix_styles(logits_of(model), after=("block1_pool", "block2_pool"))

Zhou et al., "Domain Generalization with MixStyle" (ICLR 2021). Mean and spread of a channel over an
image depend on how it was acquired (exposure, sharpness, scanner) more than on its content. A
network trained on images in the styles of others depends less on style. Inference does not change.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cxr_tf.models.replicas import draw_rows, previous_rows

# Prevents a division by zero for a constant channel.
LEAST_SPREAD = 1e-3


class MixedStyle(keras.layers.Layer):
    """Mix the style of a share of the feature maps [N, H, W, C] with that of the previous image.

    The previous image in the batch is as good as a random one, because batches are shuffled. The
    weight of an image's own style follows Beta(1/2, 1/2): mostly close to 1 or to 0. `share`: the
    probability, 0..1, that the style of an image is mixed at all.
    """

    def __init__(self, share: float, **others: Any) -> None:
        # The statistics are sums over thousands of numbers, too many for bfloat16.
        super().__init__(dtype="float32", autocast=False, **others)
        self.share = share
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the class; returns `x` unchanged unless `training`."""
        if not training:
            return x
        mean, variance = tf.nn.moments(tf.cast(x, tf.float32), axes=[1, 2], keepdims=True)
        spread = tf.sqrt(variance) + LEAST_SPREAD
        # No gradient through the statistics: the network could learn to undo the mixing.
        mean, spread = tf.stop_gradient(mean), tf.stop_gradient(spread)
        draws = draw_rows(
            lambda total: keras.random.uniform([total, 1, 1, 2], seed=self.seed_generator), x
        )
        # sin² of a uniform angle: the arcsine law, which is Beta(1/2, 1/2).
        kept = tf.sin(draws[..., :1] * (math.pi / 2)) ** 2
        kept = tf.where(draws[..., 1:] < self.share, kept, tf.ones_like(kept))
        other_mean, other_spread = tf.split(previous_rows(tf.concat([mean, spread], -1)), 2, -1)
        factor = kept + (1.0 - kept) * other_spread / spread
        offset = kept * mean + (1.0 - kept) * other_mean - mean * factor
        return x * tf.cast(factor, x.dtype) + tf.cast(offset, x.dtype)

    def compute_output_spec(self, x: keras.KerasTensor, training: bool = False) -> Any:
        """Return the spec of the input."""
        return keras.KerasTensor(x.shape, x.dtype)


def mix_styles(model: keras.Model, after: Sequence[str], share: float = 0.5) -> keras.Model:
    """Insert a `MixedStyle` after each of the named layers; shares layers and variables.

    In inference the outputs are those of `model`. Raises ValueError for an unknown layer.
    """
    names = {layer.name for layer in model.layers}
    if unknown := [name for name in after if name not in names]:
        raise ValueError(f"no layer '{unknown[0]}' in {model.name}")

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        x = operation(*args, **kwargs)
        if operation.name not in after:
            return x
        return MixedStyle(share, name=f"{operation.name}_style")(x)

    return keras.models.clone_model(model, clone_function=lambda x: x, call_function=call)
