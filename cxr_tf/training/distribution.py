"""How training is distributed over devices."""

import tensorflow as tf


def distribution() -> tf.distribute.Strategy:
    """Return `MirroredStrategy` for several GPUs, otherwise the default strategy."""
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
