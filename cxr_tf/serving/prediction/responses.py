"""Check responses of TF Serving against the server's metadata for a signature.

A prediction must have every output of the signature, with the type and shape in the metadata, one
row per image, and finite numbers, so that a wrong server or proxy never yields a wrong table. All
functions raise UserError with the reason.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cxr_tf.errors import UserError

# Output name: (numpy type, sizes of the axes with None where unknown, or None for an unknown rank).
Outputs = dict[str, tuple[np.dtype, tuple[int | None, ...] | None]]

# {input name: whether it takes strings}, and the outputs.
Signature = tuple[dict[str, bool], Outputs]


def signatures_of_json(answer: Mapping[str, Any], url: str) -> dict[str, Signature]:
    """Return the signatures in a response of the REST API to a metadata request."""
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    parsed = get_model_metadata_pb2.SignatureDefMap()
    try:
        content = {"signature_def": answer["metadata"]["signature_def"]["signature_def"]}
        json_format.ParseDict(content, parsed, ignore_unknown_fields=True)
    except (KeyError, TypeError, AttributeError, json_format.ParseError, RecursionError):
        parsed.Clear()
    return _signatures(parsed.signature_def, url)


def signatures_of_proto(answer: Any, url: str) -> dict[str, Signature]:
    """Return the signatures in a GetModelMetadataResponse."""
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import get_model_metadata_pb2

    parsed = get_model_metadata_pb2.SignatureDefMap()
    try:
        answer.metadata["signature_def"].Unpack(parsed)
    except DecodeError:
        parsed.Clear()
    return _signatures(parsed.signature_def, url)


def _signatures(definitions: Mapping[str, Any], url: str) -> dict[str, Signature]:
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    signatures: dict[str, Signature] = {}
    for name, definition in definitions.items():
        if name.startswith("__"):  # TensorFlow's own
            continue
        inputs = {k: v.dtype == types_pb2.DT_STRING for k, v in definition.inputs.items()}
        outputs: Outputs = {}
        for key, info in definition.outputs.items():
            try:
                dtype = np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype)
            except TypeError:
                raise UserError(
                    f"{url} is not a TF Serving server: output '{key}' has no type"
                ) from None
            sizes = tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim)
            outputs[key] = (dtype, None if info.tensor_shape.unknown_rank else sizes)
        signatures[name] = (inputs, outputs)
    if not signatures:
        raise UserError(f"{url} is not a TF Serving server: its response has no signatures")
    return signatures


def arrays_of_json(
    answer: Mapping[str, Any], expected: Outputs, rows: int, url: str
) -> dict[str, np.ndarray]:
    """Return the outputs of a REST response in TF Serving's columnar format, as arrays."""
    if "outputs" not in answer:
        raise _wrong(url, "has no outputs")
    outputs = answer["outputs"]
    if len(expected) == 1:  # a single output comes without its name
        outputs = {next(iter(expected)): outputs}
    if not isinstance(outputs, dict):
        raise _wrong(url, "has outputs without names")
    arrays = {}
    for name, values in outputs.items():
        if name in expected:  # others are reported by `check`
            arrays[name] = _array(values, expected[name][0], name, url)
    return check(arrays, outputs, expected, rows, url)


def arrays_of_proto(
    outputs: Mapping[str, Any], expected: Outputs, rows: int, url: str
) -> dict[str, np.ndarray]:
    """Return the outputs of a PredictResponse as arrays."""
    import tensorflow as tf

    arrays = {}
    for name, tensor in outputs.items():
        try:
            values = tf.make_ndarray(tensor)
        except Exception as error:  # an inconsistent tensor raises errors of any kind
            raise _wrong(url, f"has a damaged output '{name}' ({error})") from None
        if values.dtype.kind == "O":
            values = _text(values)
        arrays[name] = values
    return check(arrays, outputs, expected, rows, url)


def check(
    arrays: dict[str, np.ndarray],
    names: Mapping[str, Any],
    expected: Outputs,
    rows: int,
    url: str,
) -> dict[str, np.ndarray]:
    """Raise UserError if outputs differ from the metadata; return them in the metadata's order.

    names: names of the outputs in the response; rows: N, the number of images.
    """
    if missing := sorted(expected.keys() - names.keys()):
        raise _wrong(url, f"lacks '{missing[0]}'")
    if unknown := sorted(names.keys() - expected.keys()):
        raise _wrong(url, f"has an unknown output '{unknown[0]}'")
    for name, (dtype, sizes) in expected.items():
        values = arrays[name]
        if values.dtype != dtype:
            raise _wrong(url, f"has type {values.dtype} for '{name}' instead of {dtype}")
        if values.ndim == 0 or len(values) != rows:
            count = len(values) if values.ndim else "no"
            raise _wrong(url, f"has {count} rows of '{name}' for {rows} images")
        if sizes is not None and (
            len(sizes) != values.ndim
            or any(
                size not in (None, found)
                for size, found in zip(sizes[1:], values.shape[1:], strict=True)
            )
        ):
            raise _wrong(url, f"has the shape {values.shape} for '{name}' instead of {sizes}")
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise _wrong(url, f"has values of '{name}' that are not finite")
    return {name: arrays[name] for name in expected}


def _array(values: Any, dtype: np.dtype, name: str, url: str) -> np.ndarray:
    """Convert JSON to an array; numbers are not read from strings, nor strings from numbers."""
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        raise _wrong(url, f"has rows of different lengths in '{name}'") from None
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "O": "U"}.get(dtype.kind, "")
    if array.dtype.kind not in kinds:
        expected = "text" if dtype.kind == "O" else str(dtype)
        raise _wrong(url, f"has values of '{name}' that are not {expected}")
    # NumPy converts numbers among strings to strings, and booleans among numbers to numbers.
    if array.size and len({_is_plain(v) for v in np.array(values, object).ravel()}) > 1:
        raise _wrong(url, f"has values of different types in '{name}'")
    return array.astype(dtype)


def _is_plain(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def _text(values: np.ndarray) -> np.ndarray:
    """Decode an array of bytes."""
    decoded = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.ravel()]
    return np.array(decoded, object).reshape(values.shape)


def _wrong(url: str, problem: str) -> UserError:
    return UserError(f"the response of {url} is wrong: it {problem}; is this a TF Serving server?")
