"""Layers that act on the whole training batch although each replica processes a part of it.

    # This replica's rows begin at row `first` of a batch of `total` images.
    with batch_part(first, total):
        logits = trainer(images, training=True)

Random numbers are drawn for the whole batch, and each replica uses those of its rows. So a batch
gives the same result on any number of replicas.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

# MirroredStrategy traces each replica in a thread of its own.
_part = threading.local()


@contextlib.contextmanager
def batch_part(first: tf.Tensor, total: tf.Tensor) -> Iterator[None]:
    """Declare that the block calls models on the rows from `first` of a batch of `total` rows."""
    _part.value = (first, total)
    try:
        yield
    finally:
        del _part.value


def _rows(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the row of the batch at which `x` begins, and the numbers of rows of `x` and batch."""
    count = tf.shape(x)[0]
    first, total = getattr(_part, "value", (0, count))
    return first, count, total


def draw_rows(draw: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Call `draw` with the number of rows of the whole batch; return the draws for `x`."""
    first, count, total = _rows(x)
    return draw(total)[first : first + count]


def previous_rows(x: tf.Tensor) -> tf.Tensor:
    """Return for each row of `x` the row before it in the batch; for the first row, the last."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.roll(x, 1, axis=0)
    first, count, total = _rows(x)
    return tf.gather(context.all_gather(x, axis=0), (first - 1 + tf.range(count)) % total)


class BatchDropout(keras.layers.Layer):
    """A `Dropout` layer whose mask is drawn for the whole batch; has the seed of the original."""

    def __init__(self, dropout: keras.layers.Dropout) -> None:
        super().__init__(name=dropout.name, dtype=dropout.dtype_policy)
        self.dropout = dropout
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop inputs [N, ...] at random in training; return them unchanged otherwise."""
        if not training or self.dropout.rate == 0:
            return x

        def draw(total: tf.Tensor) -> tf.Tensor:
            ones = tf.ones(tf.concat([[total], tf.shape(x)[1:]], axis=0), x.dtype)
            return keras.random.dropout(ones, self.dropout.rate, seed=self.dropout.seed_generator)

        return x * draw_rows(draw, x)

    def compute_output_spec(self, x: keras.KerasTensor, training: bool = False) -> Any:
        """Return the spec of the input."""
        return keras.KerasTensor(x.shape, x.dtype)


def with_batch_dropout(model: keras.Model) -> keras.Model:
    """Replace every `Dropout` by a `BatchDropout`; shares all other layers and all variables."""

    def replace(layer: Any) -> Any:
        return BatchDropout(layer) if type(layer) is keras.layers.Dropout else layer

    return keras.models.clone_model(model, clone_function=replace)


def synchronize_norms(model: keras.Model) -> None:
    """Let BatchNorm compute its statistics over the parts of the batch on all replicas.

    With one replica, they are those of the whole batch anyway.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
