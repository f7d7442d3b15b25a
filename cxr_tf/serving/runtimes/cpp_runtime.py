"""Run exported models on TensorFlow's C++ runtime without TensorFlow's Python package.

    with load_session(Path("saved_models/vgg16-binary/1")) as session:
        session.run("serving_default", {"image_bytes": [content]})["probabilities"]

TF Serving is built on this runtime: it loads a SavedModel by the tag `serve` and runs the tensors
that a signature names. This module calls the same library, `libtensorflow_cc` in the TensorFlow
wheel, through its C API (tensorflow/c/c_api.h) with ctypes.
"""

import contextlib
import ctypes
import importlib.util
import os
import struct
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.errors import UserError

LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_cc.2.dylib")

# TF_DataType (tensorflow/c/tf_datatype.h) of the inputs and outputs of all signatures.
STRING = 7
DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 6: np.int8, 9: np.int64, 10: np.bool_,
}  # fmt: skip

# TF_Code (tensorflow/c/tf_status.h), which is also the gRPC status that TF Serving returns.
STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


class RuntimeStatusError(Exception):
    """A status other than OK; `status` is its name, such as INVALID_ARGUMENT."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Session:
    """A SavedModel that the C++ runtime has loaded; `run` may be called from several threads.

    signatures: {name: SignatureDef}, without the internal ones of TensorFlow.
    """

    def __init__(self, library: ctypes.CDLL, handle: int, graph: int, signatures: dict) -> None:
        self.signatures: dict[str, Any] = signatures
        self._library, self._handle, self._graph = library, handle, graph

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of a signature by name; strings are arrays of `bytes`.

        inputs: an array, or a sequence of `bytes`, for each input of the signature. Raises
        RuntimeStatusError if the runtime reports an error.
        """
        definition = self.signatures[signature]
        if set(inputs) != set(definition.inputs):
            raise ValueError(f"'{signature}' takes {sorted(definition.inputs)}, not {list(inputs)}")
        names = sorted(definition.outputs)
        fed, values = [], []
        with contextlib.ExitStack() as cleanup:
            for name, value in inputs.items():
                info = definition.inputs[name]
                fed.append(self._output(info.name))
                values.append(cleanup.enter_context(self._tensor(value, info.dtype)))
            fetched = [self._output(definition.outputs[name].name) for name in names]
            results = (ctypes.c_void_p * len(names))()
            with _status(self._library) as status:
                self._library.TF_SessionRun(
                    *(self._handle, None),
                    *((_Output * len(fed))(*fed), (ctypes.c_void_p * len(fed))(*values), len(fed)),
                    *((_Output * len(names))(*fetched), results, len(names)),
                    *(None, 0, None, status),
                )
            for result in results:
                cleanup.callback(self._library.TF_DeleteTensor, result)
            return {name: self._array(r) for name, r in zip(names, results, strict=True) if r}

    def close(self) -> None:
        """Release the memory of the model."""
        if self._handle:
            with _status(self._library) as status:
                self._library.TF_CloseSession(self._handle, status)
            with _status(self._library) as status:
                self._library.TF_DeleteSession(self._handle, status)
            self._library.TF_DeleteGraph(self._graph)
            self._handle = 0

    def _output(self, tensor: str) -> "_Output":
        """Return a tensor by its name in the graph, `operation:index`."""
        operation, _, index = tensor.partition(":")
        handle = self._library.TF_GraphOperationByName(self._graph, operation.encode())
        if not handle:
            raise ValueError(f"the graph has no operation '{operation}'")
        return _Output(handle, int(index or 0))

    @contextlib.contextmanager
    def _tensor(self, value: Any, dtype: int) -> Iterator[int]:
        """Yield a TF_Tensor with a copy of the values, and delete it afterwards."""
        library = self._library
        if dtype == STRING:
            array = np.array(value, object)
            size = array.size * ctypes.sizeof(_String)
        else:
            array = np.ascontiguousarray(value, DTYPES[dtype])
            size = array.nbytes
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = library.TF_AllocateTensor(dtype, shape, array.ndim, size)
        data = library.TF_TensorData(tensor)
        strings: Any = ()
        try:
            if dtype == STRING:
                strings = (_String * array.size).from_address(data) if array.size else ()
                for string, content in zip(strings, array.flat, strict=True):
                    library.TF_StringInit(ctypes.byref(string))
                    library.TF_StringCopy(ctypes.byref(string), content, len(content))
            else:
                ctypes.memmove(data, array.ctypes.data, size)
            yield tensor
        finally:
            # The tensor owns its buffer, but not the memory of the strings in it.
            for string in strings:
                library.TF_StringDealloc(ctypes.byref(string))
            library.TF_DeleteTensor(tensor)

    def _array(self, tensor: int) -> np.ndarray:
        """Return a copy of the values of a TF_Tensor."""
        library = self._library
        shape = [library.TF_Dim(tensor, k) for k in range(library.TF_NumDims(tensor))]
        dtype, data = library.TF_TensorType(tensor), library.TF_TensorData(tensor)
        if dtype == STRING:
            values = np.empty(shape, object)
            strings = (_String * values.size).from_address(data) if values.size else ()
            for k, string in enumerate(strings):
                at = ctypes.byref(string)
                values.flat[k] = ctypes.string_at(
                    library.TF_StringGetDataPointer(at), library.TF_StringGetSize(at)
                )
            return values
        array: np.ndarray = np.empty(shape, DTYPES[dtype])
        ctypes.memmove(array.ctypes.data, data, array.nbytes)
        return array


def load_session(folder: Path, *, threads: int = 0) -> Session:
    """Load the version folder of a SavedModel by the tag `serve`.

    threads: number of intra-op and of inter-op threads; 0 is one thread per core.

    Raises UserError if this installation has no C++ runtime, or the runtime cannot load the folder.
    """
    library = _library()
    graph = library.TF_NewGraph()
    options = library.TF_NewSessionOptions()
    try:
        if threads:
            # ConfigProto: intra_op_parallelism_threads is field 2, inter_op_... field 5.
            config = bytes([0x10, threads, 0x28, threads])
            with _status(library) as status:
                library.TF_SetConfig(options, config, len(config), status)
        tags = (ctypes.c_char_p * 1)(b"serve")
        with _status(library) as status:
            handle = library.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(folder), tags, 1, graph, None, status
            )
    except RuntimeStatusError as error:
        library.TF_DeleteGraph(graph)
        reason = (error.message.strip() or error.status).splitlines()[0]
        raise UserError(f"{folder} cannot be loaded: {reason}") from error
    finally:
        library.TF_DeleteSessionOptions(options)
    return Session(library, handle, graph, read_signatures(folder))


def read_signatures(folder: Path) -> dict[str, Any]:
    """Return the SignatureDefs in `saved_model.pb` by name, without those that TensorFlow adds."""
    with _bare_tensorflow_package():
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    meta_graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    return {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}


def warm_up_requests(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (signature, inputs) of each request in the warm-up file of a version, if any."""
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    if not path.exists():
        return []
    with _bare_tensorflow_package():
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    requests = []
    for record in read_records(path):
        request = PredictionLog.FromString(record).predict_log.request
        inputs = {name: _values(tensor) for name, tensor in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, without verifying their checksums."""
    # https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            yield file.read(length)
            file.read(4)


def _values(tensor: Any) -> Any:
    """Convert a TensorProto to an array; strings become an object array of `bytes`."""
    shape = [d.size for d in tensor.tensor_shape.dim]
    if tensor.dtype == STRING:
        return np.array(list(tensor.string_val), object).reshape(shape)
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, DTYPES[tensor.dtype]).reshape(shape)
    # `make_tensor_proto` stores a constant array as a single value.
    return np.broadcast_to(np.array(tensor.float_val, DTYPES[tensor.dtype]), shape)


@contextlib.contextmanager
def _bare_tensorflow_package() -> Iterator[None]:
    """Allow imports of protocol buffers under `tensorflow.core` without `tensorflow/__init__.py`.

    That file loads the whole Python package. The generated protobuf modules only need a package
    with the path of its folder.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    package = types.ModuleType("tensorflow")
    package.__path__ = [str(_tensorflow_folder())]
    sys.modules["tensorflow"] = package
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def _tensorflow_folder() -> Path:
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("TensorFlow is not installed: pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0])


# ---------------------------------------------------------------------- the C API


class _String(ctypes.Structure):
    """TF_TString: 24 bytes that contain a short string, or a pointer to a long one."""

    _fields_ = (("bytes", ctypes.c_uint64 * 3),)


class _Output(ctypes.Structure):
    """TF_Output: an operation of a graph, and the index of its output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


@contextlib.contextmanager
def _status(library: ctypes.CDLL) -> Iterator[int]:
    """Yield a TF_Status for one call; raise RuntimeStatusError unless it is OK afterwards."""
    status = library.TF_NewStatus()
    try:
        yield status
        if code := library.TF_GetCode(status):
            name = STATUS_NAMES[code] if code < len(STATUS_NAMES) else str(code)
            message = library.TF_Message(status).decode(errors="replace")
            raise RuntimeStatusError(name, message)
    finally:
        library.TF_DeleteStatus(status)


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t

# Types of the result and the arguments of every function used.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "TF_Version": (ctypes.c_char_p, []),
    "TF_NewStatus": (_POINTER, []),
    "TF_DeleteStatus": (None, [_POINTER]),
    "TF_GetCode": (_INT, [_POINTER]),
    "TF_Message": (ctypes.c_char_p, [_POINTER]),
    "TF_NewGraph": (_POINTER, []),
    "TF_DeleteGraph": (None, [_POINTER]),
    "TF_GraphOperationByName": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "TF_NewSessionOptions": (_POINTER, []),
    "TF_DeleteSessionOptions": (None, [_POINTER]),
    "TF_SetConfig": (None, [_POINTER, ctypes.c_char_p, _SIZE, _POINTER]),
    "TF_LoadSessionFromSavedModel": (
        _POINTER,
        [_POINTER, _POINTER, ctypes.c_char_p, _POINTER, _INT, _POINTER, _POINTER, _POINTER],
    ),
    "TF_SessionRun": (
        None,
        [
            *(_POINTER, _POINTER),  # session, run options
            *(_POINTER, _POINTER, _INT),  # inputs, their values, count
            *(_POINTER, _POINTER, _INT),  # outputs, their values, count
            *(_POINTER, _INT, _POINTER, _POINTER),  # targets, count, run metadata, status
        ],
    ),
    "TF_CloseSession": (None, [_POINTER, _POINTER]),
    "TF_DeleteSession": (None, [_POINTER, _POINTER]),
    "TF_AllocateTensor": (_POINTER, [_INT, _POINTER, _INT, _SIZE]),
    "TF_DeleteTensor": (None, [_POINTER]),
    "TF_TensorData": (_POINTER, [_POINTER]),
    "TF_TensorType": (_INT, [_POINTER]),
    "TF_NumDims": (_INT, [_POINTER]),
    "TF_Dim": (ctypes.c_int64, [_POINTER, _INT]),
    "TF_StringInit": (None, [_POINTER]),
    "TF_StringCopy": (None, [_POINTER, ctypes.c_char_p, _SIZE]),
    "TF_StringDealloc": (None, [_POINTER]),
    "TF_StringGetDataPointer": (_POINTER, [_POINTER]),
    "TF_StringGetSize": (_SIZE, [_POINTER]),
}


def _library() -> ctypes.CDLL:
    """Load the C++ runtime of the installed TensorFlow, and declare its functions."""
    folder = _tensorflow_folder()
    path = next((folder / name for name in LIBRARIES if (folder / name).exists()), None)
    if path is None:
        raise UserError(
            f"{folder} has no {LIBRARIES[0]}: the C++ runtime comes with TensorFlow's wheels for "
            "Linux and macOS; leave out --runtime c++"
        )
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
