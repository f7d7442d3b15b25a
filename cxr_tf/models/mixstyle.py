"""MixStyle: in training, feature maps borrow the mean and spread of another radiograph's.

    trainer = mix_styles(logits_of(model), after=("block1_pool", "block2_pool"))

Zhou et al., "Domain Generalization with MixStyle" (ICLR 2021). Mean and spread of a channel over an
image tell how it was taken (exposure, sharpness, the scanner) more than what is in it. A network
that is shown each image in the styles of others rests less on them. In inference nothing changes.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Keeps a channel that is the same everywhere from being divided by nothing.
LEAST_SPREAD = 1e-3


class MixedStyle(keras.layers.Layer):
    """Feature maps [N, H, W, C] -> the same, a share of them in a style mixed with a neighbour's.

    A neighbour is the image before it in the batch, which is drawn at random anyway. How much of
    the own style is kept follows Beta(1/2, 1/2): mostly nearly all or next to nothing. `share`:
    how often an image's style is mixed at all, 0..1.
    """

    def __init__(self, share: float, **others: Any) -> None:
        # Statistics of a map are thousands of numbers, too many to add up in bfloat16.
        super().__init__(dtype="float32", autocast=False, **others)
        self.share = share
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the class; the feature maps as they are where it is not training."""
        if not training:
            return x
        mean, variance = tf.nn.moments(tf.cast(x, tf.float32), axes=[1, 2], keepdims=True)
        spread = tf.sqrt(variance) + LEAST_SPREAD
        # Styles are data: a network that could learn through them would undo the mixing.
        mean, spread = tf.stop_gradient(mean), tf.stop_gradient(spread)
        draws = keras.random.uniform([tf.shape(x)[0], 1, 1, 2], seed=self.seed_generator)
        # The arcsine law, which is Beta(1/2, 1/2).
        kept = tf.sin(draws[..., :1] * (math.pi / 2)) ** 2
        kept = tf.where(draws[..., 1:] < self.share, kept, tf.ones_like(kept))
        factor = kept + (1.0 - kept) * tf.roll(spread, 1, axis=0) / spread
        offset = kept * mean + (1.0 - kept) * tf.roll(mean, 1, axis=0) - mean * factor
        return x * tf.cast(factor, x.dtype) + tf.cast(offset, x.dtype)

    def compute_output_spec(self, x: keras.KerasTensor, training: bool = False) -> Any:
        """That of the input."""
        return keras.KerasTensor(x.shape, x.dtype)


def mix_styles(model: keras.Model, after: Sequence[str], share: float = 0.5) -> keras.Model:
    """The same layers and variables, with a `MixedStyle` behind each of the layers of these names.

    For training; in inference it gives what the model gives. ValueError for a name of no layer.
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
