"""Benchmarks of script start-up, and of reading radiographs into batches."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.material import BATCH, radiographs
from benchmarks.measurement import Results, Row, Skipped, in_turn
from cxr_tf.data import batches as data_batches
from cxr_tf.data import decoding


def startup(settings: Benchmark, place: Path) -> Results:
    """Benchmark `--help` of the slowest script against the import of TensorFlow."""
    scripts = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))
    if not scripts:
        yield Skipped("startup", "import tensorflow", "no scripts/ beside benchmarks/")
        return

    def seconds_of(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        return time.perf_counter() - started

    timings = in_turn(
        {
            "ours": lambda: max(seconds_of(str(s), "--help") for s in scripts),
            "theirs": lambda: seconds_of("-c", "import tensorflow"),
        },
        settings.repeats or 5,
    )
    yield Row(
        job=f"--help, the slowest of {len(scripts)} scripts",
        alternative="import tensorflow",
        at_least=10,
        ours=dataclasses.replace(timings["ours"], grown_mb=0.0),
        theirs=dataclasses.replace(timings["theirs"], grown_mb=0.0),
        unit="s",
        count=1,
        same=True,
        check="",
    )


def reading(settings: Benchmark, place: Path) -> Results:
    """Benchmark reading full-size files into batches, in the first and in later epochs.

    The batches are float32 [B, S, S, 1]: all implementations use one channel, since radiographs are
    greyscale, and the network repeats it three times.
    """
    # Four times as many images as in other benchmarks: those are read in a third of a second, of
    # which the start-up would be the largest part.
    folder = radiographs(settings, place, times=4)
    size = settings.image_size
    by_keras = keras.utils.image_dataset_from_directory(
        folder,
        labels=None,
        color_mode="grayscale",
        image_size=(size, size),
        batch_size=BATCH,
        shuffle=False,
        verbose=False,
    )
    paths = list(by_keras.file_paths)

    def read(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=1, expand_animations=False)
        return tf.image.resize(image, [size, size], antialias=True)

    by_hand = (
        tf.data.Dataset.from_tensor_slices(paths)
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )

    def through(batches: tf.data.Dataset, times: int = 1) -> None:
        for _ in range(times):
            for _batch in batches:
                pass

    def first_epoch() -> None:
        images, _ = decoding.load_images(paths, size)
        through(data_batches.evaluation_batches(images, batch_size=BATCH))

    images, _ = decoding.load_images(paths, size)
    kept = data_batches.evaluation_batches(images, batch_size=BATCH)
    ours = np.concatenate(list(kept.as_numpy_iterator()))
    passes = 10

    def later_epochs() -> float:
        started = time.perf_counter()
        through(kept, passes)
        return (time.perf_counter() - started) / passes

    timings = in_turn(
        {
            "first": first_epoch,
            "later": later_epochs,
            "keras": lambda: through(by_keras),
            "by hand": lambda: through(by_hand),
        },
        settings.repeats or 5,
    )
    for other, batches, name, most in (
        ("keras", by_keras, "Keras image_dataset_from_directory", 12.0),
        ("by hand", by_hand, "tf.data by hand, antialiased", 0.7),
    ):
        theirs = np.concatenate(list(batches.as_numpy_iterator()))
        mean = float(np.abs(ours - theirs).mean())
        for epoch, job, at_least in (
            ("first", "input, first epoch", 1.3),
            ("later", "input, later epochs", 20),
        ):
            yield Row(
                job=job,
                alternative=name,
                at_least=at_least,
                ours=timings[epoch],
                theirs=timings[other],
                unit="images/s",
                count=len(paths),
                same=mean < most,
                check=f"pixels differ by {mean:.2f} of 255 on average"
                + (" (Keras does not antialias)" if other == "keras" else ""),
            )
