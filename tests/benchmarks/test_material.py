"""Tests of the data of the benchmarks: phantoms as files, and norm statistics."""

from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks import material
from benchmarks.config import Benchmark


def test_both_splits_have_phantoms_of_original_size(tmp_path) -> None:
    from PIL import Image

    root = material.radiographs(Benchmark(images=16), tmp_path)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpeg"))
    assert len(files) == 16
    assert {f.rsplit("/", 1)[0] for f in files} == {
        f"{s}/{c}" for s in ("train", "val") for c in ("NORMAL", "PNEUMONIA")
    }
    with Image.open(root / files[0]) as image:
        assert image.size == material.ORIGINAL_SIZE and image.mode == "L"
        assert np.asarray(image).std() > 20


def test_small_files_are_all_different_and_kept(tmp_path) -> None:
    paths = [Path(p) for p in material.small_files(tmp_path, 40, seed=0)]
    contents = [p.read_bytes() for p in paths]
    assert len(set(contents)) == 40
    assert {p.parent.name for p in paths} == {"NORMAL", "PNEUMONIA"}
    paths[0].write_bytes(b"kept")
    material.small_files(tmp_path, 41, seed=0)
    assert paths[0].read_bytes() == b"kept" and len(list(tmp_path.rglob("*.jpeg"))) == 41


def test_norm_statistics_give_features_of_mean_0_and_spread_1() -> None:
    images = keras.Input((8, 8, 3))
    scaled = keras.layers.BatchNormalization(trainable=False)(images * 50 + 20)
    model = keras.Model(images, scaled)
    batch = np.random.default_rng(0).normal(3, 2, (16, 8, 8, 3)).astype(np.float32)
    material.set_norm_statistics(model, batch)
    features = np.asarray(model(batch, training=False))
    assert features.mean((0, 1, 2)) == pytest.approx(0, abs=1e-3)
    assert features.std((0, 1, 2)) == pytest.approx(1, abs=1e-3)
    (norm,) = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert not norm.trainable and norm.momentum == 0.99
