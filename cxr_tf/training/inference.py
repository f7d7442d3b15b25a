"""Inference with a model that is traced as one function."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data import batches as data_batches
from cxr_tf.data.batches import to_rgb
from cxr_tf.training.distribution import Workers


def compiled(model: keras.Model) -> tf.types.experimental.ConcreteFunction:
    """Trace a model in inference mode as a function of images float32 [N, S, S, 1], for any N.

    For a model with three input channels, the channel is repeated.
    """
    height, width, channels = model.input_shape[1:]

    def call(images: tf.Tensor) -> Any:
        return model(to_rgb(images) if channels == 3 else images, training=False)

    # Without autograph, which would parse Keras's sources and find nothing to convert. Traced here,
    # because TensorFlow would mistake the first calls of several such functions for retracing.
    spec = tf.TensorSpec([None, height, width, 1], tf.float32)
    traced = tf.function(call, input_signature=[spec], autograph=False).get_concrete_function()
    traced.model = model  # a traced function alone does not keep variables alive
    return traced


def infer(function: tf.types.experimental.ConcreteFunction, batches: tf.data.Dataset) -> np.ndarray:
    """Return the outputs for all batches in order, as one float32 array [N, ...]."""
    outputs = [np.asarray(function(batch), np.float32) for batch in batches]
    if not outputs:  # with more workers than batches, the part of a worker is empty
        outputs = [np.asarray(function(tf.zeros([0, *batches.element_spec.shape[1:]])))]
    return np.concatenate(outputs)


def infer_divided(
    function: tf.types.experimental.GenericFunction,
    images: np.ndarray,
    workers: Workers,
    *,
    batch_size: int,
    stress_seed: int | None = None,
) -> np.ndarray:
    """Return the outputs for images uint8 [N, S, S, 1] in order; each worker processes a part.

    The batches are the same as with one worker, so that the outputs are bit-identical as well.
    """
    rows = workers.part(len(images), unit=min(batch_size, -(-len(images) // workers.count)))
    batches = data_batches.evaluation_batches(
        images, batch_size=batch_size, stress_seed=stress_seed, rows=rows
    )
    return workers.gather_rows(infer(function, batches))


def images_per_second(
    function: tf.types.experimental.ConcreteFunction, images: np.ndarray
) -> float:
    """Measure the inference speed on up to 64 images in batches of 32, after a warm-up."""
    batches = list(data_batches.evaluation_batches(images[:64], batch_size=32))
    function(batches[0])
    started = time.perf_counter()
    count = sum(len(np.asarray(function(b))) for b in batches)
    return count / (time.perf_counter() - started)
