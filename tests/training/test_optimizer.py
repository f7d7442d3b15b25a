"""The optimizer: loss scaling and weight decay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.training.optimizer import averaged_adamw


@pytest.mark.parametrize(("precision", "learns"), [("mixed_float16", True), ("float32", False)])
def test_loss_is_scaled_for_float16_only(precision: str, learns: bool) -> None:
    """A gradient of 1e-8 underflows in float16 without loss scaling."""
    policy = keras.DTypePolicy("mixed_float16")
    network = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", dtype=policy)]
    )
    optimizer = averaged_adamw(1e-2, steps=100, weight_decay=0.0, precision=precision)
    network.compile(optimizer, lambda _, y: 1e-8 * tf.cast(y, tf.float32), jit_compile=False)
    network.fit(np.ones((32, 1)), np.ones((32, 1)), batch_size=4, verbose=0)
    assert (float(network.layers[0].kernel.numpy()[0, 0]) != 1.0) is learns


def test_weight_decay_excludes_biases_and_norms() -> None:
    optimizer = averaged_adamw(1e-2, steps=100, weight_decay=1.0)
    names = ("kernel", "bias", "gamma", "beta")
    variables = [keras.Variable(tf.ones(3), name=name) for name in names]
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply_gradients([(tf.zeros(3), v) for v in variables])
    decayed = [float(np.asarray(v)[0]) < 1 for v in variables]
    assert decayed == [True, False, False, False]
