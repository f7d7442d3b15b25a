"""Client of TF Serving over REST and gRPC.

    predict = connect("http://localhost:8501", "vgg16-binary")
    predict([Path("one.jpeg").read_bytes()])["probabilities"]      # float32 [1, C]

A `PredictFn` takes the contents of N image files and returns the outputs of one signature, each an
array whose first axis is N; strings are `str`. `serving.loading` provides the same for a SavedModel
on disk. Responses are checked against the metadata of the server; see
`serving.prediction.responses`.
"""

import base64
import json
import logging
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.serving.prediction import responses

P = ParamSpec("P")

T = TypeVar("T")

log = logging.getLogger(__name__)


PredictFn = Callable[[Sequence[bytes]], dict[str, np.ndarray]]

# An image in the error message of the decoder in the graph: position, reason, size.
BAD_IMAGE = re.compile(r"image_bytes\[(\d+)\]: ([^;()\[\]]+?) \((\d+) bytes\)")

FIRST_PAUSE = 0.5  # seconds; doubled after every attempt

RETRIES = 6  # about half a minute in total

LARGEST_RESPONSE = 2**30  # bytes; a hundred heatmaps of 600 x 600 as JSON are far smaller


class BadImages(Exception):
    """The model rejected images of a request; `reasons` is {position: reason}."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


class Overloaded(Exception):
    """The server is temporarily unable to respond; `wait` is its suggested pause in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Unreachable(Overloaded):
    """No server accepts connections at the address."""


def connect(
    url: str,
    model: str,
    *,
    signature: str = "serving_default",
    version: int | None = None,
    label: str = "",
    timeout: float = 120.0,
) -> PredictFn:
    """Return a signature of a served model as a function of image files.

    url: http(s)://host:8501 or grpc://host:8500. `version` or `label` select a loaded version;
    the default is the newest. `timeout` limits a whole request, in seconds. Requests are retried
    with growing pauses if the server is busy or a connection breaks.

    Raises UserError if no server responds, or the server has no such model, version, label or
    signature. The returned function raises it for a response that does not match the metadata.
    """
    if version is not None and label:
        raise UserError("give --version or --label, not both")
    try:
        parts = urlsplit(url)
    except ValueError:  # unbalanced brackets of an IPv6 address
        parts = urlsplit("")
    open_protocol = {"http": _open_rest, "https": _open_rest, "grpc": _open_grpc}.get(parts.scheme)
    if open_protocol is None or not parts.netloc:
        raise UserError(f"--server {url}: give http://host:8501, https://host or grpc://host:8500")

    def opened() -> tuple[responses.Outputs, PredictFn]:
        try:
            return open_protocol(url, model, signature, version, label, timeout)
        except Unreachable as error:
            raise UserError(
                f"no TF Serving server responds at {url} ({error}): is it running?"
            ) from None

    outputs, predict = with_retries(opened)()
    log.debug("%s of %s at %s: %s", signature, model, url, ", ".join(outputs))
    return with_retries(predict)


def with_retries(function: Callable[P, T], retries: int = RETRIES) -> Callable[P, T]:
    """Wrap a function so that it is retried after growing pauses when it raises Overloaded."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        pause = FIRST_PAUSE
        for attempt in range(retries + 1):
            try:
                return function(*args, **kwargs)
            except Overloaded as error:
                if attempt == retries:
                    raise UserError(
                        f"gave up after {retries + 1} attempts: {error}; try later or use a "
                        "smaller --batch-size"
                    ) from None
                # Randomised, so that clients refused together do not retry together.
                time.sleep(max(error.wait, pause * random.uniform(1.0, 1.5)))
                pause *= 2
        raise AssertionError  # the last attempt returns or raises

    return call


def bad_images(message: str, contents: Sequence[bytes]) -> dict[int, str]:
    """Return {position in `contents`: reason} of the bad images that an error message names.

    A server with batching merges the images of several clients and numbers them consecutively. So
    an image is identified by position and size, or else by its size alone; a named image that
    matches none belongs to another client.
    """
    named = [(int(row), reason, int(size)) for row, reason, size in BAD_IMAGE.findall(message)]
    matched = {
        row: reason
        for row, reason, size in named
        if row < len(contents) and len(contents[row]) == size
    }
    if matched:
        return matched
    return {
        row: reason
        for row, content in enumerate(contents)
        for _, reason, size in named
        if len(content) == size
    }


def refusal(message: str, contents: Sequence[bytes]) -> Exception:
    """Return the exception to raise for a request that the server considers invalid."""
    if reasons := bad_images(message, contents):
        return BadImages(reasons)
    if BAD_IMAGE.search(message):
        return Overloaded(
            "the server merged this request with one of another client, which has bad images"
        )
    return UserError(f"the server rejects the request: {_first_line(message)}")


def _open_rest(
    url: str, model: str, signature: str, version: int | None, label: str, timeout: float
) -> tuple[responses.Outputs, PredictFn]:
    import requests

    session = requests.Session()
    address = f"{url.rstrip('/')}/v1/models/{quote(model, safe='')}"
    if version is not None:
        address += f"/versions/{version}"
    elif label:
        address += f"/labels/{quote(label, safe='')}"

    def request(method: str, suffix: str, body: dict[str, Any]) -> tuple[Any, bytes]:
        with session.request(
            method, address + suffix, timeout=timeout, stream=True, allow_redirects=False, **body
        ) as reply:
            parts, size = [], 0
            for part in reply.iter_content(1 << 20):
                parts.append(part)
                size += len(part)
                if size > LARGEST_RESPONSE:
                    raise UserError(
                        f"{url} sent more than {LARGEST_RESPONSE >> 20} MiB: use a smaller "
                        "--batch-size"
                    )
            return reply, b"".join(parts)

    def send(method: str, suffix: str, contents: Sequence[bytes] = (), **body: Any) -> Any:
        try:
            reply, text = within(timeout, lambda: request(method, suffix, body))
        except (TimeoutError, requests.exceptions.Timeout):
            raise _too_slow(url, timeout) from None
        except requests.exceptions.ChunkedEncodingError:
            raise Overloaded("the connection was closed during the response") from None
        except requests.exceptions.ConnectionError as error:
            # An established connection that broke is worth a retry.
            broken = re.search("reset|aborted|closed|RemoteDisconnected|timed out", str(error))
            kind = Overloaded if broken else Unreachable
            raise kind(_connection_error(error)) from None
        except requests.exceptions.RequestException as error:
            raise UserError(f"{url}: {_first_line(str(error))}") from None
        try:
            response = json.loads(text)
        except (ValueError, RecursionError):
            if reply.ok and text.lstrip()[:1] == b"{":
                raise Overloaded("the response is incomplete") from None
            response = None
        if not isinstance(response, dict):
            response = {"error": text[:1000].decode(errors="replace")}
        if reply.is_redirect:
            target = reply.headers.get("Location", "")
            raise UserError(f"{url} redirects to {target}: give that address to --server")
        if reply.ok and "error" not in response:
            return response
        message = _first_line(str(response.get("error", ""))) or reply.reason
        if reply.status_code in (429, 502, 503):
            after = reply.headers.get("Retry-After", "")
            wait = min(float(after), timeout) if re.fullmatch("[0-9]{1,9}", after) else 0.0
            raise Overloaded(f"{reply.status_code} {message}", wait)
        if reply.status_code in (408, 504):
            raise _too_slow(url, timeout)
        if reply.status_code == 404:
            raise _not_served(url, model, version, label, message)
        if reply.status_code == 400 and contents:
            raise refusal(str(response.get("error", "")), contents)
        raise UserError(f"{url} returned {reply.status_code}: {message}")

    signatures = responses.signatures_of_json(send("GET", "/metadata"), url)
    name, outputs = _choose(signatures, signature, model)

    def predict(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        encoded = [{"b64": base64.b64encode(content).decode()} for content in contents]
        body = {"signature_name": signature, "inputs": {name: encoded}}
        response = send("POST", ":predict", contents, json=body)
        return responses.arrays_of_json(response, outputs, len(contents), url)

    return outputs, predict


def _open_grpc(
    url: str, model: str, signature: str, version: int | None, label: str, timeout: float
) -> tuple[responses.Outputs, PredictFn]:
    import grpc
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        model_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    # Forty radiographs, or the heatmaps of a batch, exceed the default limit of 4 MB.
    limits = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", LARGEST_RESPONSE),
    ]
    channel = grpc.insecure_channel(urlsplit(url).netloc, options=limits)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    spec = model_pb2.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        spec.version.value = version
    elif label:
        spec.version_label = label

    def send(method: Any, request: Any, contents: Sequence[bytes] = ()) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            code, message = error.code(), error.details() or ""
        line = _first_line(message)
        if code == grpc.StatusCode.UNAVAILABLE:
            down = re.search("refused|DNS|resol|[Nn]o route|unreachable", message)
            raise (Unreachable if down else Overloaded)(line) from None
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in message:
                raise UserError(f"{url}: {line}; use a smaller --batch-size") from None
            raise Overloaded(line) from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise _too_slow(url, timeout) from None
        if code == grpc.StatusCode.NOT_FOUND:
            raise _not_served(url, model, version, label, line) from None
        if code == grpc.StatusCode.INVALID_ARGUMENT and contents:
            raise refusal(message, contents) from None
        raise UserError(f"{url} returned {code.name}: {line}") from None

    metadata_request = get_model_metadata_pb2.GetModelMetadataRequest(
        metadata_field=["signature_def"]
    )
    metadata_request.model_spec.CopyFrom(spec)
    signatures = responses.signatures_of_proto(send(stub.GetModelMetadata, metadata_request), url)
    name, outputs = _choose(signatures, signature, model)

    def predict(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=spec)
        shape = tensor_shape_pb2.TensorShapeProto(dim=[{"size": len(contents)}])
        request.inputs[name].CopyFrom(
            tensor_pb2.TensorProto(
                dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=contents
            )
        )
        response = send(stub.Predict, request, contents)
        return responses.arrays_of_proto(response.outputs, outputs, len(contents), url)

    return outputs, predict


def within(seconds: float, function: Callable[[], T]) -> T:
    """Call a function in a thread; raise TimeoutError if it takes longer than `seconds` in total.

    The timeout of `requests` applies to each read from the socket, so a server that keeps sending
    single bytes never reaches it.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((function(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result


def read_image(path: str) -> bytes:
    """Return the content of an image file; DICOM is converted to PNG."""
    from cxr_tf.data.sources import dicom

    file = Path(path)
    return dicom.png_bytes(file) if dicom.is_dicom(file) else file.read_bytes()


def as_text(values: np.ndarray) -> np.ndarray:
    """Decode arrays of bytes to arrays of str; return others unchanged."""
    if values.dtype.kind not in "OS":
        return values
    decoded = [v.decode(errors="replace") for v in values.ravel()]
    return np.array(decoded, object).reshape(values.shape)


def _choose(
    signatures: dict[str, responses.Signature], signature: str, model: str
) -> tuple[str, responses.Outputs]:
    """Return the name of a signature's only input, which takes image files, and the outputs."""
    if signature not in signatures:
        known = ", ".join(sorted(signatures))
        raise UserError(f"{model} has no signature '{signature}'; it has {known}")
    inputs, outputs = signatures[signature]
    if list(inputs.values()) != [True]:
        raise UserError(
            f"signature '{signature}' does not take image files (inputs: {', '.join(inputs)}): "
            "choose another"
        )
    return next(iter(inputs)), outputs


def _not_served(url: str, model: str, version: int | None, label: str, message: str) -> UserError:
    which = f" version {version}" if version is not None else f" label '{label}'" if label else ""
    return UserError(
        f"{url} does not serve '{model}'{which}: check the server's models.config, or wait until "
        f"the model has loaded ({message})"
    )


def _too_slow(url: str, timeout: float) -> UserError:
    return UserError(
        f"{url} did not respond within {timeout:g} s: use a longer --timeout or a smaller "
        "--batch-size (TF Serving's REST API has its own limit, --rest_api_timeout_in_ms)"
    )


def _connection_error(error: Exception) -> str:
    """Return the innermost reason of nested exceptions, such as `Connection refused`."""
    reasons = re.findall(r"\[Errno -?\d+\] ([^')\"]+)", str(error))
    return reasons[-1] if reasons else _first_line(str(error))


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[0][:300]) if lines else ""
