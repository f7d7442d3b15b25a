"""Predictions of a running TF Serving, over REST or gRPC.

    ask = connect("http://localhost:8501", "vgg16-binary")
    ask([Path("one.jpeg").read_bytes()])["probabilities"]      # float32 [1, C]

An `Ask` takes the contents of N image files and returns the outputs of one signature, each an array
whose first axis is N; strings come as `str`. `serving` has the same for a SavedModel on disk.
"""

import base64
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from cxr_tf.errors import UserError

P = ParamSpec("P")

T = TypeVar("T")

log = logging.getLogger(__name__)


PredictFn = Callable[[Sequence[bytes]], dict[str, np.ndarray]]

# What `serving.decode_images` says of an image: its position, what is wrong, its size.
FAULT = re.compile(r"image_bytes\[(\d+)\]: ([^;()\[\]]+?) \((\d+) bytes\)")

FIRST_PAUSE = 0.5  # seconds; doubles with every attempt

RETRIES = 6  # half a minute in all


class BadImages(Exception):
    """Images of a request that the model refused: {position: reason}."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


class Overloaded(Exception):
    """The server cannot answer now, and may in `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Unreachable(Overloaded):
    """Nothing answers at the address."""


def connect(
    url: str,
    model: str,
    *,
    signature: str = "serving_default",
    version: int | None = None,
    label: str = "",
    timeout: float = 120.0,
) -> PredictFn:
    """A signature of a model that TF Serving has loaded, at http(s)://host:8501 or grpc://host:8500.

    `version` or `label` choose among the loaded versions; without them the server takes its newest.
    `timeout` is of one request, in seconds. Requests that the server is too busy for are sent again
    after growing pauses.

    Raises UserError where no server answers, or it has no such model, version, label or signature.
    """
    if version is not None and label:
        raise UserError("give --version or --label, not both")
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets of an IPv6 address that do not close
        parts = urlsplit("")
    open_protocol = {"http": _open_rest, "https": _open_rest, "grpc": _open_grpc}.get(parts.scheme)
    if open_protocol is None or not parts.netloc:
        raise UserError(f"--server {url}: give http://host:8501, https://host or grpc://host:8500")

    def opened() -> tuple[Sequence[str], PredictFn]:
        try:
            return open_protocol(url, model, signature, version, label, timeout)
        except Unreachable as error:
            raise UserError(f"no TF Serving answers at {url} ({error}): is it running?") from None

    outputs, ask = persistent(opened)()
    log.debug("%s of %s at %s: %s", signature, model, url, ", ".join(outputs))
    return persistent(ask)


def persistent(ask: Callable[P, T], retries: int = RETRIES) -> Callable[P, T]:
    """The same, which asks again after a growing pause where the server is overloaded."""

    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        pause = FIRST_PAUSE
        for attempt in range(retries + 1):
            try:
                return ask(*args, **kwargs)
            except Overloaded as error:
                if attempt == retries:
                    raise UserError(
                        f"gave up after {retries + 1} attempts: {error}; try later, or with a "
                        "smaller --batch-size"
                    ) from None
                # By chance up to half as long again, or clients refused together return together.
                time.sleep(max(error.wait, pause * random.uniform(1.0, 1.5)))
                pause *= 2
        raise AssertionError  # the last attempt returns or raises

    return asked


def bad_images(message: str, contents: Sequence[bytes]) -> dict[int, str]:
    """{position in `contents`: reason} of the bad images that an error message names.

    A server that batches puts the images of several clients into one request, and counts through
    it. So the size must agree too; where it does not, the image of that size is meant, if there is
    one, and else the image is another client's.
    """
    found = [(int(row), reason, int(size)) for row, reason, size in FAULT.findall(message)]
    mine = {
        row: reason
        for row, reason, size in found
        if row < len(contents) and len(contents[row]) == size
    }
    if mine:
        return mine
    return {
        row: reason
        for row, content in enumerate(contents)
        for _, reason, size in found
        if len(content) == size
    }


def refusal(message: str, contents: Sequence[bytes]) -> Exception:
    """What to raise where a server calls a request invalid."""
    if reasons := bad_images(message, contents):
        return BadImages(reasons)
    if FAULT.search(message):
        return Overloaded("the server batches, and another client sends images it cannot read")
    return UserError(f"the server refuses the request: {_first_line(message)}")


def _open_rest(
    url: str, model: str, signature: str, version: int | None, label: str, timeout: float
) -> tuple[list[str], PredictFn]:
    import requests

    session = requests.Session()
    address = f"{url.rstrip('/')}/v1/models/{quote(model, safe='')}"
    if version is not None:
        address += f"/versions/{version}"
    elif label:
        address += f"/labels/{quote(label, safe='')}"

    def send(method: str, suffix: str, contents: Sequence[bytes] = (), **body: Any) -> Any:
        try:
            reply = session.request(method, address + suffix, timeout=timeout, **body)
        except requests.exceptions.Timeout:
            raise _too_slow(url, timeout) from None
        except requests.exceptions.ConnectionError as error:
            raise Unreachable(_connection_error(error)) from None
        except requests.exceptions.RequestException as error:
            raise UserError(f"{url}: {_first_line(str(error))}") from None
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {"error": reply.text}
        if reply.ok and "error" not in answer:
            return answer
        message = _first_line(str(answer.get("error", ""))) or reply.reason
        if reply.status_code in (429, 502, 503):
            after = reply.headers.get("Retry-After", "")
            raise Overloaded(
                f"{reply.status_code} {message}", float(after if after.isdigit() else 0)
            )
        if reply.status_code in (408, 504):
            raise _too_slow(url, timeout)
        if reply.status_code == 404:
            raise _not_served(url, model, version, label, message)
        if reply.status_code == 400 and contents:
            raise refusal(str(answer.get("error", "")), contents)
        raise UserError(f"{url} answers {reply.status_code}: {message}")

    try:
        metadata = send("GET", "/metadata")["metadata"]["signature_def"]["signature_def"]
    except (KeyError, TypeError):
        raise UserError(f"{url} is no TF Serving: its answer has no signatures") from None
    chosen = _choose(metadata, signature, model)
    name = _image_input(
        {k: v.get("dtype", "") == "DT_STRING" for k, v in chosen["inputs"].items()}, signature
    )
    dtypes = {k: v["dtype"] for k, v in chosen["outputs"].items()}

    def ask(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        encoded = [{"b64": base64.b64encode(content).decode()} for content in contents]
        body = {"signature_name": signature, "inputs": {name: encoded}}
        outputs = send("POST", ":predict", contents, json=body)["outputs"]
        if len(dtypes) == 1:
            # A single output comes without its name.
            outputs = {next(iter(dtypes)): outputs}
        return {k: np.array(v, _numpy_type(dtypes[k])) for k, v in outputs.items()}

    return list(dtypes), ask


def _open_grpc(
    url: str, model: str, signature: str, version: int | None, label: str, timeout: float
) -> tuple[list[str], PredictFn]:
    import grpc
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        model_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    # Forty radiographs, or the heatmaps of a batch, are more than the 4 MB that gRPC starts with.
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(urlsplit(url).netloc, options=unlimited)
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
            down = "connect" in message.lower() or "DNS" in message
            raise (Unreachable if down else Overloaded)(line) from None
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in message:
                raise UserError(f"{url}: {line}; take a smaller --batch-size") from None
            raise Overloaded(line) from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise _too_slow(url, timeout) from None
        if code == grpc.StatusCode.NOT_FOUND:
            raise _not_served(url, model, version, label, line) from None
        if code == grpc.StatusCode.INVALID_ARGUMENT and contents:
            raise refusal(message, contents) from None
        raise UserError(f"{url} answers {code.name}: {line}") from None

    question = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    question.model_spec.CopyFrom(spec)
    answer = send(stub.GetModelMetadata, question)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    chosen = _choose(signatures.signature_def, signature, model)
    name = _image_input(
        {k: v.dtype == types_pb2.DT_STRING for k, v in chosen.inputs.items()}, signature
    )

    def ask(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=spec)
        shape = tensor_shape_pb2.TensorShapeProto(dim=[{"size": len(contents)}])
        request.inputs[name].CopyFrom(
            tensor_pb2.TensorProto(
                dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=contents
            )
        )
        outputs = send(stub.Predict, request, contents).outputs
        return {k: as_text(tf.make_ndarray(v)) for k, v in outputs.items()}

    return list(chosen.outputs), ask


def read_image(path: str) -> bytes:
    """Contents of an image file as the signatures take it; DICOM becomes PNG on the way."""
    from cxr_tf.data.sources import dicom

    file = Path(path)
    return dicom.png_bytes(file) if dicom.is_dicom(file) else file.read_bytes()


def as_text(values: np.ndarray) -> np.ndarray:
    """Arrays of bytes as arrays of str; others as they are."""
    if values.dtype.kind not in "OS":
        return values
    decoded = [v.decode(errors="replace") for v in values.ravel()]
    return np.array(decoded, object).reshape(values.shape)


def _choose(signatures: Any, signature: str, model: str) -> Any:
    known = sorted(k for k in signatures if not k.startswith("__"))
    if signature not in known:
        raise UserError(f"{model} has no signature '{signature}'; it has {', '.join(known)}")
    return signatures[signature]


def _image_input(inputs: dict[str, bool], signature: str) -> str:
    """Name of the only input, which takes strings."""
    if list(inputs.values()) != [True]:
        raise UserError(f"signature '{signature}' does not take image files, but {list(inputs)}")
    return next(iter(inputs))


def _numpy_type(name: str) -> Any:
    if name == "DT_STRING":
        return object
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    return tf.as_dtype(types_pb2.DataType.Value(name)).as_numpy_dtype


def _not_served(url: str, model: str, version: int | None, label: str, message: str) -> UserError:
    which = f" version {version}" if version is not None else f" label '{label}'" if label else ""
    return UserError(
        f"{url} does not serve '{model}'{which}: look into its models.config, or wait until it has "
        f"loaded ({message})"
    )


def _too_slow(url: str, timeout: float) -> UserError:
    return UserError(
        f"{url} gave no answer within {timeout:g} s: take a longer --timeout or a smaller "
        "--batch-size (TF Serving's REST gives up on its own after --rest_api_timeout_in_ms)"
    )


def _connection_error(error: Exception) -> str:
    """The reason at the bottom of a nest of exceptions, such as `Connection refused`."""
    found = re.findall(r"\[Errno -?\d+\] ([^')\"]+)", str(error))
    return found[-1] if found else _first_line(str(error))


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0][:300] if lines else ""
