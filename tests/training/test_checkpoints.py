"""Checkpoints: which of them load, the training time, and equal files of equal models."""

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from cxr_tf.errors import UserError
from cxr_tf.files import write_atomically
from cxr_tf.training import epochs
from cxr_tf.training.checkpoints import TrainingState, save_keras
from cxr_tf.training.optimizer import averaged_adamw


def small_model() -> keras.Model:
    keras.utils.clear_session()  # so that names are counted from one, as in a new process
    keras.utils.set_random_seed(3)
    policy = keras.DTypePolicy("float32")  # a shared object, whose address Keras writes
    x = inputs = keras.Input([4])
    for _ in range(2):
        x = keras.layers.Dense(3, dtype=policy)(x)
    return keras.Model(inputs, x)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    first, second = small_model(), small_model()
    x = np.ones([2, 4], np.float32)
    for name, model in (("first.keras", first), ("second.keras", second)):
        write_atomically(tmp_path / name, lambda path, m=model: save_keras(m, path))
    content = [(tmp_path / name).read_bytes() for name in ("first.keras", "second.keras")]
    assert content[0] == content[1]
    assert b"shared_object_id" in zipfile.ZipFile(tmp_path / "first.keras").read("config.json")
    loaded = keras.saving.load_model(tmp_path / "first.keras")
    np.testing.assert_array_equal(loaded(x), first(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.keras", "second.keras"]


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
