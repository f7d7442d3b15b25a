"""A model in inference as one traced function."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import to_rgb


def compiled(model: keras.Model) -> tf.types.experimental.GenericFunction:
    """The model in inference as one traced function of float32 [N, S, S, 1], for any N.

    A model of three channels is shown the one three times.
    """
    height, width, channels = model.input_shape[1:]

    def call(images: tf.Tensor) -> Any:
        return model(to_rgb(images) if channels == 3 else images, training=False)

    # Without autograph, which would translate Keras's sources and find nothing to do.
    spec = tf.TensorSpec([None, height, width, 1], tf.float32)
    return tf.function(call, input_signature=[spec], autograph=False)


def infer(function: tf.types.experimental.GenericFunction, batches: tf.data.Dataset) -> np.ndarray:
    """Outputs for all batches in order, float32."""
    return np.concatenate([np.asarray(function(batch), np.float32) for batch in batches])
