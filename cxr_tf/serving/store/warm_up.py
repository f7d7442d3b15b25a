"""Warm-up requests, which TF Serving replays after loading a version."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.data.sources.phantoms import phantom

# The path at which TF Serving looks for warm-up requests.
WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"


def write_warm_up(path: Path, name: str, signatures: dict[str, Any]) -> None:
    """Write TF Serving's warm-up file: one request with a phantom for each signature.

    TF Serving replays these requests before a version goes live, so that the first request of a
    client does not wait for buffers and kernels. `signatures` are the model's SignatureDefs.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, definition in sorted(signatures.items()):
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=name, signature_name=signature)
            )
            for key, info in definition.inputs.items():
                shape = [max(d.size, 1) for d in info.tensor_shape.dim]
                values = _phantom_input(tf.as_dtype(info.dtype), shape)
                request.inputs[key].CopyFrom(tf.make_tensor_proto(values, info.dtype, shape))
            record = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(record.SerializeToString())


def phantom_file(size: int = 128) -> bytes:
    """Return the contents of a PNG file of a phantom."""
    image = phantom("bacterial", seed=0, patient=0, size=size).image
    return tf.io.encode_png(image[..., None]).numpy()


def _phantom_input(dtype: tf.DType, shape: list[int]) -> Any:
    """Return an input of the given type and shape: files or pixels of phantoms if possible."""
    if dtype == tf.string:
        return np.full(shape, phantom_file(), object)
    if len(shape) == 4:
        height, width = shape[1:3]
        image = phantom("bacterial", seed=0, patient=0, size=max(32, height, width)).image
        return np.broadcast_to(image[:height, :width, None], shape).astype(dtype.as_numpy_dtype)
    return np.zeros(shape, dtype.as_numpy_dtype)


def signature_defs(folder: Path) -> dict[str, Any]:
    """Return the SignatureDefs of a SavedModel by name, without TensorFlow's internal ones."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    return {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}
