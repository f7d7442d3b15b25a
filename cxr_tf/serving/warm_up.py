"""Warm-up requests, which TF Serving replays when it loads a version."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.data.sources.phantoms import phantom

# Where TF Serving looks for requests to send itself before a version goes live.
WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"


def write_warm_up(path: Path, name: str, signatures: dict[str, Any]) -> None:
    """One request for each signature, made of a phantom, as TF Serving's warm-up file.

    TF Serving sends them to a version that it has loaded, and only then lets it answer others: the
    first user does not wait for buffers and kernels. `signatures` are the model's SignatureDefs.
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
    """A phantom as the contents of a PNG file."""
    image = phantom("bacterial", seed=0, patient=0, size=size).image
    return tf.io.encode_png(image[..., None]).numpy()


def _phantom_input(dtype: tf.DType, shape: list[int]) -> Any:
    """An input of that type and shape: files of phantoms, or their pixels as far as they reach."""
    if dtype == tf.string:
        return np.full(shape, phantom_file(), object)
    if len(shape) == 4:
        height, width = shape[1:3]
        image = phantom("bacterial", seed=0, patient=0, size=max(32, height, width)).image
        return np.broadcast_to(image[:height, :width, None], shape).astype(dtype.as_numpy_dtype)
    return np.zeros(shape, dtype.as_numpy_dtype)


def signature_defs(folder: Path) -> dict[str, Any]:
    """The SignatureDefs of a SavedModel, by name, without those that TensorFlow keeps there."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    return {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}
