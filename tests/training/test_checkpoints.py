"""Equal models are written as equal files, and load again."""

import zipfile
from pathlib import Path

import keras
import numpy as np

from cxr_tf.files import write_atomically
from cxr_tf.training.checkpoints import save_keras


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
