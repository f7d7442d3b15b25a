"""How training is distributed over devices."""

import tensorflow as tf


def distribution() -> tf.distribute.Strategy:
    """All GPUs of this machine by `MirroredStrategy`; with one or none, the default strategy."""
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
