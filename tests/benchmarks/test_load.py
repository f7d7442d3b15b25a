"""Tests of the load test: every client gets the prediction of its image."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import load_test
from benchmarks.load.server import in_batches, serve
from cxr_tf.serving.loading import load_served


def by_length(files: Sequence[bytes]) -> list[list[float]]:
    return [[float(len(content))] for content in files]


def test_batches_are_bounded_and_each_request_gets_its_own_row() -> None:
    sizes: list[int] = []

    def predict(files: Sequence[bytes]) -> list[list[float]]:
        sizes.append(len(files))
        return by_length(files)

    server = serve(in_batches(predict, 3))
    assert server.server_address[0] == "127.0.0.1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    files = [b"x" * (k + 1) for k in range(10)]
    latencies, predictions = load_test.send(server.server_port, files, 5, 30)
    server.shutdown()
    server.server_close()
    assert predictions.tolist() == by_length(files)
    assert len(latencies) == 30 and latencies.min() > 0
    assert sum(sizes) == 30 and 1 < max(sizes) <= 3


def test_an_error_reaches_every_request_of_the_batch() -> None:
    def predict(files: Sequence[bytes]) -> list[list[float]]:
        raise ValueError("no model")

    predict_one = in_batches(predict, 4)
    for _ in range(2):  # and the next ones
        with pytest.raises(ValueError, match="no model"):
            predict_one(b"x")


def test_the_server_predicts_with_the_cpp_runtime(small_models: Path, phantoms: Path) -> None:
    paths = [str(p) for p in sorted((phantoms / "test").rglob("*.png"))[:3]]
    files = [Path(p).read_bytes() for p in paths]
    with load_test.server("c++", small_models / "tiny" / "1", 4) as port:
        _, predictions = load_test.send(port, files, 2, 6)
    expected = load_served(str(small_models / "tiny")).predict(paths)["probabilities"]
    np.testing.assert_allclose(predictions, expected, atol=1e-5)
