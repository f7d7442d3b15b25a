"""Measure the peak memory of training, and how the input's memory grows with the number of images.

Each measurement runs in a fresh process.
"""

from pathlib import Path

import keras
import numpy as np

from benchmarks.config import Benchmark
from benchmarks.material import BATCH, small_files
from benchmarks.measurement import Memory, Results, Skipped, in_new_process, memory_of_process
from cxr_tf.config import TrainClassifier
from cxr_tf.data import batches as data_batches
from cxr_tf.data import decoding, loading
from cxr_tf.data.sources.phantoms import write_phantoms

# Limit of the peak memory of training VGG16 on 224 x 224 pixels, in batches of 32.
TRAINING_MB = 3000

# Limit of the memory per image of the catalogue, and of the input pipeline without the cached
# pixels.
BESIDE_KB = 4

FEW, MANY = 1_000, 10_000


def peaks_of_memory(settings: Benchmark, place: Path) -> Results:
    """Measure the memory of training all layers of VGG16, and of catalogue and input per image."""
    if not memory_of_process("VmHWM"):
        yield Skipped("memory", "all", "this system does not report the peak memory of a process")
        return
    yield from _training(settings, place)
    yield from _growth(settings, place)


def _training(settings: Benchmark, place: Path) -> Results:
    size = settings.image_size
    folder = place / "phantoms"
    write_phantoms(folder, count=96, size=128, seed=settings.seed)  # 67 to train on: two steps
    job = f"training VGG16 at {size}, batch {BATCH}, every layer"
    yield Memory(
        job,
        "ours: train_classifier.py from files to SavedModel",
        in_new_process(train, str(folder), str(place), size),
        "MB",
        TRAINING_MB,
    )
    yield Memory(
        job,
        "Keras with its default settings: image_dataset_from_directory, compile, fit",
        in_new_process(train_by_keras, str(folder), size),
        "MB",
    )


def train(folder: str, place: str, size: int) -> float:
    """Return the peak memory in MB of `train_classifier` with one epoch, including the export."""
    from cxr_tf.classification.train_classifier import train_classifier
    from cxr_tf.training.precision import resolve_precision

    settings = TrainClassifier(
        data=folder,
        backbone="vgg16",
        weights="none",  # so that all blocks are trained
        precision=resolve_precision("auto"),
        image_size=size,
        batch_size=BATCH,
        epochs=1,
        bootstrap_samples=50,
        name="memory",
        logs=f"{place}/memory/logs",
        saved_models=f"{place}/memory/saved_models",
    )
    train_classifier(settings)
    return memory_of_process("VmHWM")


def train_by_keras(folder: str, size: int) -> float:
    """Return the peak memory in MB of one epoch on these images, as in Keras's documentation."""
    batches = keras.utils.image_dataset_from_directory(
        f"{folder}/train", image_size=(size, size), batch_size=BATCH, verbose=False
    )
    inputs = keras.Input((size, size, 3))
    base = keras.applications.VGG16(
        include_top=False,
        weights=None,
        pooling="avg",
        input_tensor=keras.applications.vgg16.preprocess_input(inputs),
    )
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(base.output))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(batches.take(2), epochs=1, shuffle=False, verbose=0)
    return memory_of_process("VmHWM")


def _growth(settings: Benchmark, place: Path) -> Results:
    size, folder = settings.image_size, place / "small"
    peaks = {}
    for count in (FEW, MANY):
        small_files(folder, count, settings.seed)
        peaks[count] = in_new_process(read_through, str(folder), size)
    job = f"catalogue and input at {size}, from {FEW:,} to {MANY:,} images"
    catalog, whole = (
        1024 * (peaks[MANY][key] - peaks[FEW][key]) / (MANY - FEW) for key in ("catalog", "whole")
    )
    cache = size * size / 1024
    peak = peaks[MANY]["whole"]
    yield Memory(job, "the catalogue", catalog, "kB per image", BESIDE_KB)
    yield Memory(
        job,
        "an epoch of training batches, without the cache of 8-bit pixels",
        whole - cache,
        "kB per image",
        BESIDE_KB,
        note=f"with the cache {whole:.1f} kB per image; the peak at {MANY:,} was {peak:,.0f} MB",
    )
    yield Memory(job, "the cache of 8-bit pixels, calculated", cache, "kB per image")


def read_through(folder: str, size: int) -> dict[str, float]:
    """Return the memory that the catalogue adds, and the peak after an epoch of batches, in MB."""
    before = memory_of_process("VmRSS")
    catalog = loading.open_catalog(folder)
    grown = memory_of_process("VmHWM") - before
    images, _ = decoding.load_images(catalog.paths, size)
    labels = catalog.labels("binary")
    batches = data_batches.training_batches(
        images, labels.astype(np.int64), batch_size=BATCH, seed=0, epochs=range(1)
    )
    for _ in batches:
        pass
    return {"catalog": grown, "whole": memory_of_process("VmHWM")}
