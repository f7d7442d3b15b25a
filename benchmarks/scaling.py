"""Measure how the time of each job grows with the number of images.

Networks and images are small, so that thousands of images take seconds: the growth is measured, not
the speed. A job that takes the same time for every image has a slope of 1, or less if a part of its
time is constant.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark
from benchmarks.embeddings import random_embeddings
from benchmarks.material import BATCH, embeddings, exported, small_files
from benchmarks.measurement import Results, Way, by_size
from cxr_tf.anomaly import fitting
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data import batches as data_batches
from cxr_tf.data import decoding, loading
from cxr_tf.models import autoencoder
from cxr_tf.models.classifier import logits_of
from cxr_tf.models.occlusion import occluder
from cxr_tf.neighbors import projection, selection
from cxr_tf.serving.prediction.batch_prediction import predict_in_batches
from cxr_tf.training import optimizer

SIZE = 64

# Share of the images that get an occlusion map, which takes as long as a hundred predictions.
MAPPED = 1 / 100


def costs(settings: Benchmark, place: Path) -> Results:
    """Measure the seconds of each job for each number of images in `--sizes`."""
    small = dataclasses.replace(settings, image_size=SIZE)
    for prepare, job, what in (
        (_catalogue, "reading the catalogue", "files"),
        (_decoding, f"input, first epoch, to {SIZE} px", "files"),
        (_batches, f"input, later epochs, {SIZE} px", "images"),
        (_classifier, f"an epoch of training, AlexNet at {SIZE}", "images"),
        (
            _autoencoder,
            f"an epoch of training, denoising autoencoder at {SIZE}, on the healthy half",
            "images",
        ),
        (_predictions, f"predictions of files, SavedModel of AlexNet at {SIZE}", "files"),
        (_knn, f"choice of nearest neighbours, {settings.width} numbers each", "embeddings"),
        (_tsne, f"t-SNE, {settings.width} numbers each", "embeddings"),
        (
            _occlusion,
            f"occlusion maps of one image in {1 / MAPPED:.0f}, AlexNet at {SIZE}",
            "images",
        ),
    ):
        yield by_size(prepare(small, place), job, what, settings.sizes, settings.repeats or 1)


def _images(settings: Benchmark, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images for the largest size, uint8 [N, S, S, 1], and labels int64 [N]."""
    paths = small_files(place / "scaling", settings.sizes[-1], settings.seed)
    images, _ = decoding.load_images(paths, SIZE)
    return images, np.arange(len(paths), dtype=np.int64) % 2


def _through(batches: tf.data.Dataset) -> None:
    for _ in batches:
        pass


def _catalogue(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    def prepare(count: int) -> Way:
        folder = place / f"catalogue-{count}"
        small_files(folder, count, settings.seed)
        return lambda: loading.open_catalog(str(folder))

    return prepare


def _decoding(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    paths = small_files(place / "scaling", settings.sizes[-1], settings.seed)

    def prepare(count: int) -> Way:
        def way() -> None:
            images, _ = decoding.load_images(paths[:count], SIZE)
            _through(data_batches.evaluation_batches(images, batch_size=BATCH))

        return way

    return prepare


def _batches(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    images, labels = _images(settings, place)

    def prepare(count: int) -> Way:
        batches = data_batches.training_batches(
            images[:count], labels[:count], batch_size=BATCH, seed=0, epochs=range(1)
        )
        return lambda: _through(batches)

    return prepare


def _classifier(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    images, labels = _images(settings, place)
    trainer = logits_of(exported("alexnet", settings, place / "small")[0])
    trainer.compile(
        optimizer.averaged_adamw(1e-5, steps=1000, weight_decay=0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )

    def prepare(count: int) -> Way:
        batches = data_batches.training_batches(
            images[:count], labels[:count], batch_size=BATCH, seed=0, epochs=range(1)
        )
        steps = data_batches.steps_per_epoch(count, BATCH)
        return lambda: trainer.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    return prepare


def _autoencoder(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    images, _ = _images(settings, place)
    # The network's input has this side, which is half that of the radiographs.
    job = TrainAutoencoder(image_size=2 * SIZE)
    network = autoencoder.build_network(job.model, job.image_size)
    network.compile(
        optimizer.averaged_adamw(job.learning_rate, steps=1000, weight_decay=1e-4),
        loss=fitting.losses(job.model),
        loss_weights=fitting.LOSS_WEIGHTS[job.model],
        jit_compile=False,
    )

    def prepare(count: int) -> Way:
        def way() -> None:
            # Half of the images are healthy, as in the other jobs.
            healthy = images[:count:2]
            batches = fitting.training_batches(healthy, job, job.batch_size, range(1))
            steps = data_batches.steps_per_epoch(count // 2, job.batch_size)
            network.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

        return way

    return prepare


def _predictions(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    paths = small_files(place / "scaling", settings.sizes[-1], settings.seed)
    ask = exported("alexnet", settings, place / "small")[1].predictor("serving_default")

    def prepare(count: int) -> Way:
        def way() -> None:
            for _ in predict_in_batches(ask, paths[:count], BATCH, "error"):
                pass

        return way

    return prepare


def _knn(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    def prepare(count: int) -> Way:
        given = random_embeddings(count, settings.width, settings.seed, place)
        return lambda: selection.search(given)

    return prepare


def _tsne(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    def prepare(count: int) -> Way:
        values, _ = embeddings(count, settings.width, settings.seed)
        return lambda: projection.project(values, seed=settings.seed)

    return prepare


def _occlusion(settings: Benchmark, place: Path) -> Callable[[int], Way]:
    images, _ = _images(settings, place)
    model = exported("alexnet", settings, place / "small")[0]
    grid = occluder.make_grid(SIZE)
    function = occluder.compiled(occluder.make_occluder(model, grid))
    places = occluder.all_places(grid)

    def prepare(count: int) -> Way:
        chosen = data_batches.to_rgb(images[: int(count * MAPPED)]).numpy()
        grey = occluder.cover_images(chosen, "gray", grid.patch)

        def way() -> None:
            # One image at a time, as in scripts/explain.py.
            for k in range(len(chosen)):
                plain, covered = function(chosen[k : k + 1], grey[k : k + 1], places)
                drops = occluder.drop(plain, covered, [1], "probability")
                occluder.heatmaps(grid, drops).numpy()

        return way

    return prepare
