"""A server with the REST API of TF Serving that returns wrong responses of many kinds."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

CLASSES = ["normal", "pneumonia"]


def _tensor(dtype: str, *sizes: int) -> dict[str, Any]:
    return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(s)} for s in sizes]}}


METADATA = {
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {"image_bytes": _tensor("DT_STRING", -1)},
                    "outputs": {
                        "probabilities": _tensor("DT_FLOAT", -1, 2),
                        "classes": _tensor("DT_STRING", -1, 2),
                        "label": _tensor("DT_STRING", -1),
                    },
                }
            }
        }
    }
}


def right_answer(rows: int) -> dict[str, Any]:
    """Return the JSON of a correct prediction of `rows` images."""
    return {
        "outputs": {
            "probabilities": [[0.25, 0.75]] * rows,
            "classes": [CLASSES] * rows,
            "label": ["pneumonia"] * rows,
        }
    }


def _changed(**outputs: Any) -> Callable[[int], Any]:
    return lambda rows: {"outputs": right_answer(rows)["outputs"] | outputs}


def _without(name: str) -> Callable[[int], Any]:
    def answer(rows: int) -> Any:
        outputs = right_answer(rows)["outputs"]
        del outputs[name]
        return {"outputs": outputs}

    return answer


# {name of a fault: function from the number of images to the JSON of their prediction}.
WRONG_PREDICTIONS: dict[str, Callable[[int], Any]] = {
    "empty object": lambda rows: {},
    "a list": lambda rows: [1],
    "a number": lambda rows: 7,
    "no outputs": lambda rows: {"outputs": {}},
    "outputs null": lambda rows: {"outputs": None},
    "outputs a list": lambda rows: {"outputs": [right_answer(rows)["outputs"]]},
    "row format": lambda rows: {"predictions": [{"label": "pneumonia"}] * rows},
    "too few rows": lambda rows: right_answer(rows - 1),
    "too many rows": lambda rows: right_answer(rows + 1),
    "no probabilities": _without("probabilities"),
    "no label": _without("label"),
    "an unknown output": lambda rows: {
        "outputs": right_answer(rows)["outputs"] | {"score": [0.5] * rows}
    },
    "strings for numbers": lambda rows: _changed(probabilities=[["0.25", "0.75"]] * rows)(rows),
    "numbers for strings": lambda rows: _changed(label=[1] * rows)(rows),
    "mixed types": lambda rows: _changed(probabilities=[[True, 0.75]] * rows)(rows),
    "null for a number": lambda rows: _changed(probabilities=[[None, 0.75]] * rows)(rows),
    "NaN": lambda rows: _changed(probabilities=[[float("nan"), 0.75]] * rows)(rows),
    "infinity": lambda rows: _changed(probabilities=[[float("inf"), 0.75]] * rows)(rows),
    "ragged rows": lambda rows: _changed(probabilities=[[0.5]] + [[0.25, 0.75]] * (rows - 1))(rows),
    "three classes": lambda rows: _changed(probabilities=[[0.2, 0.3, 0.5]] * rows)(rows),
    "a scalar": lambda rows: _changed(label="pneumonia")(rows),
    "deep nesting": lambda rows: _changed(probabilities=[[[0.25, 0.75]]] * rows)(rows),
}

WRONG_METADATA: dict[str, Any] = {
    "metadata empty": {},
    "metadata a list": [],
    "metadata without signatures": {"metadata": {"signature_def": {"signature_def": {}}}},
    "metadata of another type": {"metadata": {"signature_def": 3}},
    "metadata without types": {
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {"inputs": {"image_bytes": {}}, "outputs": {"label": {}}}
                }
            }
        }
    },
}

# Faults of the connection, during the metadata or the prediction request.
TRANSPORT = ("redirect", "HTML", "invalid UTF-8", "cut once", "cut always", "closed once", "drip")


@contextlib.contextmanager
def hostile_server(fault: str, where: str = "prediction") -> Iterator[str]:
    """Yield the address of a server that is correct except for one fault.

    where: the request during which a fault of the connection occurs, metadata or prediction.
    """
    hits = {"metadata": 0, "prediction": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer("metadata", WRONG_METADATA.get(fault, METADATA))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            rows = len(body["inputs"]["image_bytes"])
            self._answer("prediction", WRONG_PREDICTIONS.get(fault, right_answer)(rows))

        def _answer(self, kind: str, content: Any) -> None:
            hits[kind] += 1
            body = json.dumps(content).encode()
            length, status, headers = len(body), 200, {}
            drips = False
            if kind == where:
                if fault == "redirect":
                    status, headers = 302, {"Location": "http://127.0.0.1:9/elsewhere"}
                elif fault == "HTML":
                    body = b"<html>It works!</html>"
                    length = len(body)
                elif fault == "invalid UTF-8":
                    body = b"\xff\xfe\x00{"
                    length = len(body)
                elif fault == "cut always" or (fault == "cut once" and hits[kind] == 1):
                    body = body[: len(body) // 2]  # half of the announced length
                elif fault == "closed once" and hits[kind] == 1:
                    self.close_connection = True
                    self.connection.close()
                    return
                drips = fault == "drip"
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                if drips:
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(0.1)
                else:
                    self.wfile.write(body)
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
