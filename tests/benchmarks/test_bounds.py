"""Tests of the lower bounds of computation times."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import bounds, measurement, tables
from benchmarks.config import Benchmark
from benchmarks.measurement import Results, Skipped


def test_bounds_match_those_calculated_by_hand(tmp_path) -> None:
    settings = Benchmark(image_size=64, images=16, backbones=("alexnet", "vgg16"), repeats=1)
    found = list(bounds.bounds(settings, tmp_path, side=64, read=2**16))
    values = {(x.job, x.of): x.value for x in found}
    # Of torchvision's AlexNet at 64 pixels by hand: maps of 15, 7 and 3 pixels a side, a classifier
    # of 9,216-4,096-4,096, and two classes.
    by_hand = 15**2 * 11**2 * 3 * 64 + 7**2 * 25 * 64 * 192
    by_hand += 3**2 * 9 * (192 * 384 + 384 * 256 + 256 * 256)
    by_hand += 9216 * 4096 + 4096 * 4096 + 4096 * 2
    assert values["one image through alexnet at 64", "multiplications"] == by_hand / 1e9
    speed, reading = (v for (job, of), v in values.items() if of == "float32")
    slowest = values["one image through alexnet at 64", "at the speed of a matrix product, float32"]
    assert slowest == pytest.approx(1000 * by_hand / 1e9 / speed)
    # Its kernels and biases, by hand.
    parameters = 11**2 * 3 * 64 + 25 * 64 * 192
    parameters += 9 * (192 * 384 + 384 * 256 + 256 * 256) + 64 + 192 + 384 + 256 + 256
    parameters += 9216 * 4096 + 4096 * 4096 + 4096 * 2 + 2 * 4096 + 2
    assert values["one image through alexnet at 64", "weights, float32"] == 4e-6 * parameters
    slowest = values["one image through alexnet at 64", "reading the weights from memory"]
    assert slowest == pytest.approx(4e-6 * parameters / reading)
    shares = [v for (job, _), v in values.items() if job.startswith("multiplications")]
    assert len(shares) == 2 and all(0 < v <= 100 for v in shares)
    assert values["JPEG of 1300 x 900 to 64, one thread", "this package, all steps"] > 0
    text = tables.table(found, measurement.machine())
    assert "| one image through alexnet at 64 | multiplications | 0.0941 billion |" in text


def test_bounds_without_a_jpeg_skip_the_decoder(tmp_path) -> None:
    settings = Benchmark(backbones=(), repeats=1, images=16, data="pngs")
    drawn = tmp_path / "radiographs-16"  # there since an earlier job
    drawn.mkdir()

    def last() -> Results:
        return list(bounds.bounds(settings, tmp_path, side=64, read=2**16))[-1]

    assert isinstance(last(), Skipped)
    data = tf.io.encode_jpeg(np.zeros((32, 32, 1), np.uint8)).numpy()
    (drawn / "1.JPG").write_bytes(data)
    assert last().job.startswith("JPEG of 32 x 32 to 224")
