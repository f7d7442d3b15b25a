"""`tf.data` batches of decoded radiographs, for training and for evaluation."""

import numpy as np
import tensorflow as tf

from cxr_tf.data.augmentation import augment, augmentation_draws, vary_acquisition
from cxr_tf.data.tf_data import PARALLEL, no_autograph, prefetch

# Seed of the perturbed validation copy: fixed, so that runs with different seeds are comparable.
STRESS_SEED = 20_001


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epochs: range,
    strength: float = 1.0,
    strong: bool = False,
    part: range | None = None,
) -> tf.data.Dataset:
    """Return the training batches of the given epochs: (float32 [B, S, S, 3] in 0..255, int64 [B]).

    Each epoch has a new order of the images and a new augmentation of each image. Both depend
    only on seed, epoch and row, so that a resumed run sees the same batches. The last, incomplete
    batch of an epoch is dropped; see `steps_per_epoch`. strong: use `augment` instead of the milder
    `vary_acquisition`. part: return only these rows of every batch, for one of several replicas.
    """
    n = len(labels)
    steps = steps_per_epoch(n, batch_size)
    size = images.shape[1]
    part = range(batch_size) if part is None else part

    @no_autograph
    def take_part(rows: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return rows[part.start : part.stop], draws[part.start : part.stop]

    @no_autograph
    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        rows = tf.random.experimental.stateless_shuffle(
            tf.range(n, dtype=tf.int64), seed=epoch_seed
        )[: steps * batch_size]
        # Drawn by row, so that neither order nor batch size affects the augmentation of an image.
        draws = tf.gather(augmentation_draws(n, epoch_seed), rows)
        return tf.data.Dataset.from_tensor_slices((rows, draws)).batch(batch_size).map(take_part)

    @no_autograph
    def gather(rows: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(lambda r: images[r], [rows], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [len(part), size, size, 1])
        return batch, draws, tf.gather(tf.constant(labels, tf.int64), rows)

    @no_autograph
    def finish(batch: tf.Tensor, draws: tf.Tensor, target: tf.Tensor) -> tuple:
        change = augment if strong else vary_acquisition
        return to_rgb(change(batch, draws, strength)), target

    stream = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(order)
    stream = stream.map(gather, num_parallel_calls=2)
    return prefetch(stream.map(finish, num_parallel_calls=PARALLEL))


def evaluation_batches(
    images: np.ndarray,
    *,
    batch_size: int,
    stress_seed: int | None = None,
    strength: float = 2.5,
    rows: range | None = None,
) -> tf.data.Dataset:
    """Return all images in order: float32 [B, S, S, 1] in 0..255; the last batch may be smaller.

    The batches have one channel, because writing three equal ones takes longer than everything
    else; `training.inference.compiled` repeats the channel in the network's graph. With
    `stress_seed` every image is augmented at `strength`, in the same way each time: a simulated
    acquisition shift, under which a nearly separable validation set can still rank models. rows:
    return only these.
    """
    size = images.shape[1]
    draws = None
    if stress_seed is not None:
        draws = augmentation_draws(len(images), tf.constant([stress_seed, -1], tf.int64))

    @no_autograph
    def gather(rows: tf.Tensor) -> tf.Tensor:
        batch = tf.numpy_function(lambda r: images[r], [rows], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [None, size, size, 1])
        if draws is None:
            return tf.cast(batch, tf.float32)
        return vary_acquisition(batch, tf.gather(draws, rows), strength)

    rows = range(len(images)) if rows is None else rows
    numbers = tf.data.Dataset.range(rows.start, rows.stop).batch(batch_size)
    return prefetch(numbers.map(gather, num_parallel_calls=PARALLEL))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of complete batches in an epoch."""
    return count // batch_size


def to_rgb(gray: tf.Tensor) -> tf.Tensor:
    """Repeat one channel, [..., 1] -> float32 [..., 3], the input of the backbones."""
    gray = tf.cast(gray, tf.float32)
    return tf.concat([gray, gray, gray], axis=-1)
