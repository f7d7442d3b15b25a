"""Settings that every `tf.data` stream of the package shares."""

import os

import tensorflow as tf

# For what a tf.data stream calls: autograph would translate its source and find nothing to do.
no_autograph = tf.autograph.experimental.do_not_convert

# Files or batches that are prepared at a time.
PARALLEL = min(os.cpu_count() or 2, 16)


def prefetch(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, prepared while the one before is in use; without tf.data's own tuning.

    The thread that tunes (AUTOTUNE) may miss that an iterator is let go, which then waits for the
    thread's next turn. Turns are twice as far apart each time, so that a pass over validation took
    up to twice its time (seen in four of ten with TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)
