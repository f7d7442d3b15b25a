"""Measure lower bounds of computation times, given by arithmetic, memory, and the JPEG decoder.

A computation takes at least as long as its multiplications would at the speed of a bare matrix
product, and at least as long as reading its weights from memory or decoding its files.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.material import radiographs
from benchmarks.measurement import Bound, Results, Skipped, Way, timed
from cxr_tf.data import decoding
from cxr_tf.models import backbones
from cxr_tf.models.layer_graph import read_network
from cxr_tf.models.occlusion import occluder, windows
from cxr_tf.training.precision import resolve_precision

# Side of the matrices, large enough that the product is bound by arithmetic, not by memory.
SIDE = 2048

# Number of values that are read to measure the memory bandwidth, more than fit into any cache.
READ = 2**26

FILES = 16


def bounds(settings: Benchmark, place: Path, side: int = SIDE, read: int = READ) -> Results:
    """Measure the machine's speed, the bounds that it sets for networks, and how a JPEG is read.

    side: side of the matrices; read: number of values that are read from memory.
    """
    repeats = settings.repeats or 9
    speeds = {"float32": products_a_second(tf.float32, side, repeats)}
    if resolve_precision("auto") == "mixed_bfloat16":
        speeds["bfloat16"] = products_a_second(tf.bfloat16, side, repeats)
    for precision, speed in speeds.items():
        job = f"product of two matrices of {side:,} x {side:,}"
        yield Bound(job, precision, speed / 1e9, "billion mult./s")
    reading = bytes_a_second(read, repeats)
    yield Bound(f"sum of {read:,} numbers", "float32", reading / 1e9, "GB/s")
    for name in settings.backbones:
        yield from _network(name, settings.image_size, speeds, reading)
    yield from _jpeg(settings, place, repeats)


def products_a_second(dtype: tf.DType, side: int, repeats: int) -> float:
    """Return the multiplications per second of a square matrix product, in the fastest call."""
    a, b = (tf.cast(tf.random.stateless_normal([side, side], [k, 0]), dtype) for k in (0, 1))

    def multiply() -> None:
        tf.linalg.matmul(a, b).numpy()

    return side**3 / fastest(multiply, repeats)


def bytes_a_second(read: int, repeats: int) -> float:
    """Return the bytes per second at which memory is read, in the fastest call."""
    values = tf.ones([read])
    return 4 * read / fastest(lambda: tf.reduce_sum(values).numpy(), repeats)


def fastest(way: Way, repeats: int) -> float:
    """Return the seconds of the fastest, least disturbed call after a warm-up."""
    way()
    return min(timed(way) for _ in range(repeats))


def _network(name: str, size: int, speeds: dict[str, float], reading: float) -> Iterator[Bound]:
    images = keras.Input((size, size, 3))
    features = backbones.backbone(name).features(images)
    model = keras.Model(images, keras.layers.Dense(2, "softmax")(features))
    network = read_network(model)
    multiplications = sum(step.multiplications for step in network.after)
    job = f"one image through {name} at {size}"
    yield Bound(job, "multiplications", multiplications / 1e9, "billion")
    for precision, speed in speeds.items():
        of = f"at the speed of a matrix product, {precision}"
        yield Bound(job, of, 1000 * multiplications / speed, "ms")
    weights = 4 * model.count_params()
    yield Bound(job, "weights, float32", weights / 1e6, "MB")
    yield Bound(job, "reading the weights from memory", 1000 * weights / reading, "ms")
    grid = occluder.make_grid(size)
    share = windows.make_plan(network, grid.starts, grid.patch).share
    job = f"multiplications that a patch of {grid.patch} pixels affects"
    yield Bound(job, f"{name} at {size}", 100 * share, "%")


def _jpeg(settings: Benchmark, place: Path, repeats: int) -> Results:
    size = settings.image_size
    folder = radiographs(settings, place)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    encoded = [tf.constant(path.read_bytes()) for path in paths[:FILES]]
    if not encoded:
        yield Skipped("bounds", "parts of reading a JPEG", f"{settings.data} contains no JPEG")
        return

    def decoded(ratio: int) -> list[tf.Tensor]:
        # One channel and the accurate DCT, as in `decoding.decode_radiograph`.
        decode = functools.partial(
            tf.io.decode_jpeg, channels=1, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )
        return [decode(x) for x in encoded]

    whole, half = decoded(1), decoded(2)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def ours(file: tf.Tensor) -> tf.Tensor:
        return decoding.decode_radiograph(file, size)

    def resized(images: list[tf.Tensor], antialias: bool) -> None:
        for image in images:
            tf.image.resize(image, [size, size], antialias=antialias)

    parts: dict[str, Way] = {
        "decoding at full size": lambda: decoded(1),
        "decoding at half the size": lambda: decoded(2),
        "decoding at an eighth of the size (mainly Huffman codes)": lambda: decoded(8),
        "resizing from full size, not antialiased, as in Keras": lambda: resized(whole, False),
        "resizing from full size, antialiased": lambda: resized(whole, True),
        "resizing from half the size, antialiased": lambda: resized(half, True),
        "this package, all steps": lambda: [ours(x) for x in encoded],
    }
    width, height = np.mean([x.shape[1::-1] for x in whole], axis=0)
    job = f"JPEG of {width:.0f} x {height:.0f} to {size}, one thread"
    for part, way in parts.items():
        yield Bound(job, part, 1000 * fastest(way, repeats) / len(encoded), "ms")
