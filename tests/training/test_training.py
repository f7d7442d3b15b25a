"""What every training shares: the optimizer is AdamW, and a step is traced once."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.classification.train_classifier import resolve
from cxr_tf.config import TrainClassifier
from cxr_tf.errors import UserError
from cxr_tf.training import epochs
from cxr_tf.training.checkpoints import TrainingState
from cxr_tf.training.optimizer import FusedAdamW, averaged_adamw


def trained(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    """Weights after 20 steps, and the averaged ones."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss, jit_compile=False)
    values = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    labels = (values.sum(1) > 0).astype(np.int64)
    network.fit(values, labels, epochs=5, batch_size=16, shuffle=False, verbose=0)
    raw = network.get_weights()
    optimizer.finalize_variable_values(network.trainable_variables)
    return raw + network.get_weights()


def test_the_fused_update_is_that_of_adamw() -> None:
    def rate() -> keras.optimizers.schedules.LearningRateSchedule:
        return keras.optimizers.schedules.CosineDecay(
            0.0, decay_steps=20, warmup_target=1e-2, warmup_steps=3
        )

    common = {"global_clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.9}
    right = trained(keras.optimizers.AdamW(rate(), weight_decay=0.3, **common))
    found = trained(FusedAdamW(rate(), decay=0.3, **common))
    without = trained(FusedAdamW(rate(), decay=0.0, **common))
    for a, b in zip(right, found, strict=True):
        assert a == pytest.approx(b, abs=5e-6)
    assert max(np.abs(a - b).max() for a, b in zip(right, without, strict=True)) > 1e-3


@pytest.mark.parametrize(("precision", "learns"), [("mixed_float16", True), ("float32", False)])
def test_the_loss_is_scaled_for_float16(precision: str, learns: bool) -> None:
    """A gradient of 1e-8 is 0 in float16; without scaling nothing would be learnt from it."""
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
def test_bfloat16_where_the_processor_and_the_network_gain(
    flags: str, backbone: str, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never from scratch."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _=None: [])
    monkeypatch.setattr(Path, "read_text", lambda _: flags)
    left_open = TrainClassifier(backbone=backbone, image_size=size)  # type: ignore[arg-type]
    assert resolve(left_open).precision == precision
    assert resolve(replace(left_open, weights="none")).precision == "float32"
    named = TrainClassifier(backbone="vgg16", image_size=64, precision="float32")
    assert resolve(named).precision == "float32"


def test_biases_and_norms_do_not_decay() -> None:
    optimizer = averaged_adamw(1e-2, steps=100, weight_decay=1.0)
    names = ("kernel", "bias", "gamma", "beta")
    variables = [keras.Variable(tf.ones(3), name=name) for name in names]
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply_gradients([(tf.zeros(3), v) for v in variables])
    decayed = [float(np.asarray(v)[0]) < 1 for v in variables]
    assert decayed == [True, False, False, False]


def test_the_clock_goes_on_over_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before the head is fitted to the last checkpoint, and on from there."""
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


def test_a_checkpoint_of_other_variables_is_refused_before_any_is_loaded(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="does not fit the network") as said:
        TrainingState(tmp_path).load(other)
    assert "damaged" not in str(said.value)
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
