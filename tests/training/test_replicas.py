"""Tests that training gives the same weights on 1, 2 and 4 devices."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.training.distribution import distribute_batches
from cxr_tf.training.optimizer import averaged_adamw

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Weights after 20 steps on 1, 2 and 4 virtual devices, from one separate process."""
    out = tmp_path_factory.mktemp("replicas") / "weights.npz"
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "replica_training.py"), str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("devices", [2, 4])
def test_weights_do_not_depend_on_the_number_of_devices(
    weights: dict[str, np.ndarray], devices: int
) -> None:
    """Clipping, MixStyle, dropout, class weights, averaging and BatchNorm see the whole batch.

    A batch of 6 is divided into 1, 2, 1 and 2 images for 4 devices.
    """
    expected = {k[3:]: v for k, v in weights.items() if k.startswith("1: ")}
    assert {"conv1_conv/kernel", "conv2_bn/moving_mean", "averaged logits/kernel"} <= set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(
            weights[f"{devices}: {name}"], values, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_keras_still_has_the_method_that_sums_gradients() -> None:
    """The test fails if Keras renames the method; see `SummedGradientAdamW`."""
    assert hasattr(keras.optimizers.AdamW, "_all_reduce_sum_gradients")
    optimizer = averaged_adamw(1e-2, steps=10, weight_decay=0.0)
    pairs = [(tf.ones(3), None)]
    assert optimizer._all_reduce_sum_gradients(pairs) is pairs


def test_fewer_images_than_devices_raise() -> None:
    class FourDevices:
        num_replicas_in_sync = 4

    with pytest.raises(UserError, match=r"at least 4 images per .* not 3.*--batch-size"):
        distribute_batches(FourDevices(), 3, lambda part: None)
