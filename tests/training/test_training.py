"""Tests of optimizer, precision and checkpoints."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.classification.resolved import resolve
from cxr_tf.config import TrainClassifier
from cxr_tf.errors import UserError
from cxr_tf.training import epochs
from cxr_tf.training.checkpoints import TrainingState
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


@pytest.mark.parametrize(
    ("flags", "backbone", "size", "precision"),
    [
        ("avx512f avx512_bf16", "vgg16", 64, "mixed_bfloat16"),
        ("avx512f avx512_bf16", "resnet50", 95, "float32"),
        ("avx512f avx512_bf16", "resnet50", 96, "mixed_bfloat16"),
        ("avx512f", "vgg16", 224, "float32"),
    ],
)
def test_auto_precision_depends_on_processor_and_network(
    flags: str, backbone: str, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From scratch it is always float32."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _=None: [])
    monkeypatch.setattr(Path, "read_text", lambda _: flags)
    auto = TrainClassifier(backbone=backbone, image_size=size)  # type: ignore[arg-type]
    assert resolve(auto).precision == precision
    assert resolve(replace(auto, weights="none")).precision == "float32"
    given = TrainClassifier(backbone="vgg16", image_size=64, precision="float32")
    assert resolve(given).precision == "float32"


def test_weight_decay_excludes_biases_and_norms() -> None:
    optimizer = averaged_adamw(1e-2, steps=100, weight_decay=1.0)
    names = ("kernel", "bias", "gamma", "beta")
    variables = [keras.Variable(tf.ones(3), name=name) for name in names]
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply_gradients([(tf.zeros(3), v) for v in variables])
    decayed = [float(np.asarray(v)[0]) < 1 for v in variables]
    assert decayed == [True, False, False, False]


def test_training_time_includes_interrupted_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    now = 100.0
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: now)
    state = TrainingState(tmp_path)
    now = 130.0
    state.save({"epoch": 1, "selection_loss": 0.5}, network, [])
    now = 500.0  # killed, and started again
    resumed = TrainingState(tmp_path)
    now = 510.0
    assert resumed.seconds == 40.0


def test_checkpoint_of_another_network_raises_and_loads_nothing(tmp_path: Path) -> None:
    def network(width: int) -> keras.Model:
        built = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])
        built.compile(averaged_adamw(1e-2, steps=10, weight_decay=0.0))
        built.optimizer.build(built.trainable_variables)
        return built

    first, other = network(3), network(5)
    raw = [np.full(v.shape, 7, v.dtype) for v in (*first.variables, *first.optimizer.variables)]
    entry = {"epoch": 1, "selection_loss": 0.5}
    TrainingState(tmp_path).save(entry, first, raw)
    before = other.get_weights()
    with pytest.raises(UserError, match="does not fit the network") as error:
        TrainingState(tmp_path).load(other)
    assert "damaged" not in str(error.value)
    for kept, value in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(kept, value)
    TrainingState(tmp_path).load(first)
    for name in ("checkpoint.npz", "best.npz"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=f"{name} is damaged"):
            TrainingState(tmp_path).restore_best(first)
        if name == "checkpoint.npz":
            file.unlink()
    assert np.all(first.get_weights()[0] == 7)
