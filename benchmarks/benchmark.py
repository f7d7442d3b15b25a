"""Benchmark the package against alternatives that a user would write, and compare the results.

    python scripts/benchmark.py knn savedmodel

The package and the alternatives take turns in one process, usually after a warm-up: A B, B A, A B,
..., so that other load on the machine slows both equally. A ratio is computed in each round; the
median, the lowest and the highest of the rounds are reported. The alternatives are written as in
their documentation, and their outputs are compared with the package's. Peak memory is measured in
fresh processes. Alternatives in TensorFlow use the allocator that the scripts enable (see `cli`),
which users would not have by default.

Each job is a generator of rows, and each row is reported as soon as it is measured.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import keras

from benchmarks.bounds import bounds
from benchmarks.config import Benchmark
from benchmarks.embeddings import knn, tsne
from benchmarks.measurement import Bound, Cost, Memory, Results, Row, Skipped, load, machine
from benchmarks.memory import peaks_of_memory
from benchmarks.occlusion import occlusion_maps
from benchmarks.reading import reading, startup
from benchmarks.scaling import costs
from benchmarks.serving import folder, savedmodel
from benchmarks.tables import line, table
from benchmarks.training import finetuning, transfer
from cxr_tf.config import check_numbers
from cxr_tf.errors import UserError
from cxr_tf.files import write_json
from cxr_tf.models import backbones
from cxr_tf.models.weights import check_weights
from cxr_tf.runs import check_name

log = logging.getLogger(__name__)


JOBS: dict[str, Callable[[Benchmark, Path], Results]] = {
    "bounds": bounds,
    "startup": startup,
    "knn": knn,
    "tsne": tsne,
    "input": reading,
    "occlusion": occlusion_maps,
    "savedmodel": savedmodel,
    "folder": folder,
    "finetuning": finetuning,
    "transfer": transfer,
    "memory": peaks_of_memory,
    "scaling": costs,
}


def benchmark(settings: Benchmark) -> Path:
    """Run the selected jobs, print the tables, and return the path of the JSON file.

    Raises UserError for invalid settings before anything is measured, and for unusable --data when
    a job reads them.
    """
    check(settings)
    name = settings.name or datetime.now().strftime("%Y-%m-%d-%H%M%S")
    check_name(name)
    file = Path(settings.logs) / "benchmark" / f"{name}.json"
    if file.exists():
        raise UserError(f"{file} already exists: choose another --name")
    keras.utils.set_random_seed(settings.seed)

    results: list[Row | Memory | Cost | Bound | Skipped] = []
    about: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "machine": machine(),
        "load_before": load(),
    }

    def write(finished: bool) -> None:
        record = {
            "finished": finished,
            "load_after": load(),
            "rows": [x.record() for x in results if isinstance(x, Row)],
            "memory": [x.record() for x in results if isinstance(x, Memory)],
            "costs": [x.record() for x in results if isinstance(x, Cost)],
            "bounds": [x.record() for x in results if isinstance(x, Bound)],
            "skipped": [dataclasses.asdict(x) for x in results if isinstance(x, Skipped)],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**about, **record})

    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        for job in settings.jobs or tuple(JOBS):
            log.info("%s ...", job)
            for row in JOBS[job](settings, Path(directory)):
                results.append(row)
                log.info("  %s", line(row))
                write(finished=False)  # so that an interrupted run keeps its results
    write(finished=True)
    print(table(results, about["machine"]))
    log.info("written:     %s", file)
    return file


def check(settings: Benchmark) -> None:
    """Raise UserError for an unknown job, a number out of range, or unusable weights."""
    check_numbers(settings)
    if unknown := [job for job in settings.jobs if job not in JOBS]:
        raise UserError(f"unknown job '{unknown[0]}'; known: {', '.join(JOBS)}")
    for flag, value, least in (
        ("--images", settings.images, 16),
        ("--points", settings.points, 200),
        ("--width", settings.width, 2),
        ("--repeats", 1 if settings.repeats is None else settings.repeats, 1),
        ("--image-size", settings.image_size, backbones.SMALLEST_SIZE),
        ("--sizes", min(settings.sizes, default=0), 200),
    ):
        if value < least:
            raise UserError(f"{flag} must be at least {least}, not {value}")
    if len(settings.sizes) < 2 or sorted(set(settings.sizes)) != list(settings.sizes):
        raise UserError("--sizes must be two or more numbers, each larger than the one before")
    check_weights("vgg16", settings.vgg16_weights)
