"""Measure the latency and throughput of exported models on the C++ runtime, and of Keras `predict`.

    python scripts/load_test.py
    python scripts/load_test.py --backbones vgg16 --requests 200

Every model is served by the same small HTTP server in a separate process (`server.py`), on the
loopback interface only, and gets a fixed number of requests: first from one client, then from
several at once (with batching, only the latter). A request is one file of 1300 x 900 pixels, and
the response contains its probabilities.
"""

import contextlib
import dataclasses
import http.client
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import Benchmark, LoadTest
from benchmarks.material import radiographs
from benchmarks.measurement import load, machine
from cxr_tf.config import check_numbers
from cxr_tf.data.batches import to_rgb
from cxr_tf.files import write_json
from cxr_tf.models.batch_norm_folding import fold_norms
from cxr_tf.models.classifier import build_classifier
from cxr_tf.serving.decoding import decode_images
from cxr_tf.serving.export import save

log = logging.getLogger(__name__)

# The largest allowed difference between the probabilities of two backends, by precision. Their JPEG
# decoders differ by half a grey level (docs/performance.md).
TOLERANCE = {"float32": 0.02, "bfloat16": 0.05}


@dataclasses.dataclass(frozen=True)
class Result:
    """The latencies in milliseconds and the throughput of one backend, for a number of clients."""

    backbone: str
    precision: str
    backend: str
    clients: int
    requests: int
    p50: float
    p95: float
    p99: float
    images_per_second: float


def load_test(settings: LoadTest) -> Path:
    """Measure all backbones and backends, print a table, and return the path of the JSON file.

    Raises UserError for a number that is out of range.
    """
    check_numbers(settings, requests=1, clients=2, batch=2)
    name = settings.name or datetime.now().strftime("load-%Y-%m-%d-%H%M%S")
    file = Path(settings.logs) / "benchmark" / f"{name}.json"
    keras.utils.set_random_seed(settings.seed)
    results: list[Result] = []
    load_before = load()
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        images = radiographs(Benchmark(images=16, seed=settings.seed), Path(directory))
        files = [p.read_bytes() for p in sorted(images.rglob("*.jpeg"))]
        for backbone in settings.backbones:
            for precision in settings.precisions:
                folder = Path(directory) / backbone / precision
                write_model(folder, backbone, precision, settings.image_size)
                for result in measure_model(folder, backbone, precision, files, settings):
                    log.info("  %s", row(result))
                    results.append(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "load_before": load_before, "load_after": load()}
    rows = [dataclasses.asdict(r) for r in results]
    write_json(file, {"settings": dataclasses.asdict(settings), **about, "results": rows})
    print(table(results))
    log.info("written:     %s", file)
    return file


def write_model(folder: Path, backbone: str, precision: str, size: int) -> None:
    """Export a classifier with random weights as `model.keras` and as the SavedModel `1/`."""
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    model = build_classifier(backbone, classes=2, image_size=size, precision=policy)
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    network = fold_norms(model)

    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = to_rgb(decode_images(image_bytes, size))
        return {"probabilities": network(images, training=False)}

    spec = tf.TensorSpec([None], tf.string, name="image_bytes")
    save({"serving_default": (classify, spec)}, str(folder / "1"))


def measure_model(
    folder: Path, backbone: str, precision: str, files: Sequence[bytes], settings: LoadTest
) -> Iterator[Result]:
    """Measure each backend of one model with one client (without batching) and with all clients."""
    expected: np.ndarray | None = None
    batched = f"batches of {settings.batch}"
    for backend, name, batch in (
        ("c++", "C++ runtime", 1),
        ("c++", f"C++ runtime, {batched}", settings.batch),
        ("keras", "Keras predict", 1),
        ("keras", f"Keras predict, {batched}", settings.batch),
    ):
        model = folder / ("1" if backend == "c++" else "model.keras")
        with server(backend, model, batch) as port:
            # These requests are also the warm-up, in which every batch size is traced or planned.
            _, predictions = send(port, files, settings.clients, 2 * len(files))
            expected = predictions if expected is None else expected
            difference = float(np.abs(predictions - expected).max())
            if difference > TOLERANCE[precision]:
                raise RuntimeError(
                    f"the probabilities of {name} differ from those of the C++ runtime by up to "
                    f"{difference:.1g} (allowed: {TOLERANCE[precision]})"
                )
            for clients in (1, settings.clients) if batch == 1 else (settings.clients,):
                start = time.perf_counter()
                latencies, _ = send(port, files, clients, settings.requests)
                seconds = time.perf_counter() - start
                p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
                yield Result(
                    *(backbone, precision, name, clients, len(latencies)),
                    *(float(p50), float(p95), float(p99), len(latencies) / seconds),
                )


@contextlib.contextmanager
def server(backend: str, model: Path, batch: int) -> Iterator[int]:
    """Run the server in a separate process; yield its port, and stop it afterwards."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.load.server",
            backend,
            str(model),
            "--batch",
            str(batch),
        ],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        port = process.stdout.readline()
        if not port:
            reason = process.stderr.read()[-1000:]
            raise RuntimeError(f"the server ended with status {process.wait()}: {reason}")
        # Read its log continuously, so that it never blocks on a full pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(port)
    finally:
        process.communicate()  # closes the server's standard input, which makes it exit


def send(
    port: int, files: Sequence[bytes], clients: int, requests: int
) -> tuple[np.ndarray, np.ndarray]:
    """Send `requests` images from concurrent clients, each over a separate connection.

    Returns the seconds of each request, float [requests], and the probabilities of each file that
    was sent, float [N, C].
    """
    numbers = iter(range(requests))
    next_number = threading.Lock()
    latencies = np.zeros(requests)
    predictions: dict[int, list[float]] = {}
    errors: list[BaseException] = []

    def client() -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            while True:
                with next_number:
                    number = next(numbers, None)
                if number is None:
                    break
                start = time.perf_counter()
                connection.request("POST", "/", files[number % len(files)])
                response = connection.getresponse()
                body = response.read()
                latencies[number] = time.perf_counter() - start
                if response.status != 200:
                    raise RuntimeError(f"the server returned HTTP status {response.status}")
                predictions[number % len(files)] = json.loads(body)
            connection.close()
        except BaseException as error:  # raised again in the main thread
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies, np.array([predictions[k] for k in sorted(predictions)])


def row(result: Result) -> str:
    """Format one result as a row of a Markdown table."""
    cells: list[Any] = [result.backbone, result.precision, result.backend, result.clients]
    cells += [f"{v:.1f}" for v in (result.p50, result.p95, result.p99, result.images_per_second)]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(results: Sequence[Result]) -> str:
    """Format all results as a Markdown table."""
    head = "| network | precision | backend | clients | p50, ms | p95, ms | p99, ms | images/s |"
    return "\n".join([head, "| --- " * 8 + "|", *map(row, results)])
