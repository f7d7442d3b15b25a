"""A small HTTP server on the loopback interface that serves one model.

    python -m benchmarks.load.server c++ saved_models/vgg16-binary/1 --batch 8

The front end is the same for every backend: a client posts the bytes of an image, and gets its
probabilities as JSON. The server prints its port when it is ready, and exits when its standard
input ends.
"""

import argparse
import http.server
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# A function from image files to a list of probabilities for each.
Predict = Callable[[Sequence[bytes]], list[list[float]]]

# Seconds that a batch waits for one more request.
BATCH_WAIT_SECONDS = 0.005


def cpp_backend(folder: Path) -> Predict:
    """Return a predictor on the C++ runtime, without TensorFlow's Python package."""
    from cxr_tf.serving.runtimes.cpp_runtime import load_session

    session = load_session(folder)

    def predict(files: Sequence[bytes]) -> list[list[float]]:
        return session.run("serving_default", {"image_bytes": files})["probabilities"].tolist()

    return predict


def keras_backend(file: Path) -> Predict:
    """Return a predictor that decodes images and calls `predict` of the model in a .keras file."""
    import io

    import keras
    import numpy as np

    model = keras.saving.load_model(file)
    side = model.input_shape[1:3]
    one_at_a_time = threading.Lock()  # `predict` keeps state in the model

    def predict(files: Sequence[bytes]) -> list[list[float]]:
        images = [
            keras.utils.img_to_array(
                keras.utils.load_img(io.BytesIO(f), target_size=side, interpolation="bilinear")
            )
            for f in files
        ]
        with one_at_a_time:
            return model.predict(np.stack(images), verbose=0).tolist()

    return predict


def in_batches(predict: Predict, batch: int) -> Callable[[bytes], list[float]]:
    """Return a function that predicts one file, in a batch with the files of other threads.

    A batch runs when it has `batch` requests, or when none has arrived for five milliseconds (TF
    Serving's `batch_timeout_micros { value: 5000 }` counts from the first request).
    """
    waiting: queue.Queue[tuple[bytes, Future]] = queue.Queue()

    def work() -> None:
        while True:
            requests = [waiting.get()]
            while len(requests) < batch:
                try:
                    requests.append(waiting.get(timeout=BATCH_WAIT_SECONDS))
                except queue.Empty:
                    break
            try:
                rows = predict([content for content, _ in requests])
            except Exception as error:
                for _, future in requests:
                    future.set_exception(error)
                continue
            for (_, future), row in zip(requests, rows, strict=True):
                future.set_result(row)

    threading.Thread(target=work, daemon=True).start()

    def predict_one(content: bytes) -> list[float]:
        future: Future[list[float]] = Future()
        waiting.put((content, future))
        return future.result()

    return predict_one


def serve(predict_one: Callable[[bytes], list[float]]) -> http.server.ThreadingHTTPServer:
    """Create a server on a free port of 127.0.0.1 with a thread for each connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        # Otherwise a response of two small packets waits 40 ms for an acknowledgement.
        wbufsize = -1

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(predict_one(content)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("backend", choices=["c++", "keras"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    flags = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as the scripts do
    predict = {"c++": cpp_backend, "keras": keras_backend}[flags.backend](flags.model)
    predict_one = (
        in_batches(predict, flags.batch)
        if flags.batch > 1
        else lambda content: predict([content])[0]
    )
    server = serve(predict_one)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
