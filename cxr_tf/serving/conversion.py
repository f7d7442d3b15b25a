"""Convert a classifier's SavedModel to ONNX, LiteRT or OpenVINO, and run the converted file.

    convert(load_served("saved_models/vgg16-binary"), "onnx", Path("model.onnx"))
    run = open_converted(Path("model.onnx"))
    run(images)                      # float32 [N, S, S, 3] in 0..255 -> probabilities [N, C]

The signature `tensor` is converted, from pixels to calibrated probabilities. Decoding and resizing
are left out: no format has TensorFlow's operations for them (docs/export.md).
"""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.serving.loading import ServedModel
from cxr_tf.serving.runtimes import openvino_engine

log = logging.getLogger(__name__)

FILES = {"onnx": "model.onnx", "litert": "model.tflite", "openvino": "model.xml"}

# Packages that write and run each format: {module: package}.
NEEDS = {
    "onnx": {"tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"},
    "litert": {"ai_edge_litert": "ai-edge-litert"},
    "openvino": {"openvino": "openvino"},
}

# tf2onnx 1.17 supports operator sets up to 18; ONNX Runtime has supported 17 since version 1.12.
OPSET = 17

Network = Callable[[np.ndarray], np.ndarray]


def check_installed(format_: str) -> None:
    """Raise UserError if the packages of a format are not installed."""
    if missing := [p for m, p in NEEDS[format_].items() if importlib.util.find_spec(m) is None]:
        file = f"requirements-{'openvino' if format_ == 'openvino' else 'export'}.txt"
        raise UserError(f"--format {format_} needs {' and '.join(missing)}: pip install -r {file}")


def runtime_version(format_: str) -> str:
    """Return the name and version of the package that runs a format."""
    package = list(NEEDS[format_].values())[-1]
    return f"{package} {metadata.version(package)}"


def convert(served: ServedModel, format_: str, path: Path, *, int8: bool = False) -> None:
    """Convert the signature `tensor` of a classifier to another format, and write it to a file.

    The converted model takes `images`, float32 [N, S, S, 3] in 0..255, and returns `probabilities`,
    float32 [N, C]. int8 (LiteRT only): quantise the weights to 8 bits; the runtime quantises the
    activations of each batch by their own range.
    """
    tensor: Any = served.signature("tensor")
    (images,) = tensor.structured_input_signature[1].values()

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": tensor(images=images)["probabilities"]}

    spec = tf.TensorSpec(images.shape, tf.float32, name="images")
    function = tf.function(classify, input_signature=[spec], autograph=False)
    with _quiet():
        if format_ == "onnx":
            _write_onnx(function.get_concrete_function(), path)
        elif format_ == "litert":
            path.write_bytes(_litert(function.get_concrete_function(), served, int8=int8))
        else:
            _write_openvino(function.get_concrete_function(), path)


def _write_onnx(function: Any, path: Path) -> None:
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
    # The class names, which only string outputs need, are inputs of the frozen function too.
    (given,) = (x.name for x in frozen.inputs if x.dtype == tf.float32 and x.shape.rank == 4)
    (probabilities,) = (x.name for x in frozen.outputs)
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[given],
        output_names=[probabilities],
        opset=OPSET,
        tensors_to_rename={given: "images", probabilities: "probabilities"},
    )
    path.write_bytes(model.SerializeToString())


def _litert(function: Any, served: ServedModel, *, int8: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], served.loaded)
    if int8:
        # No calibration images: they would fix the scales of the activations, and with scales from
        # phantoms VGG16 loses 0.13 of AUROC on radiographs (docs/export.md).
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _write_openvino(function: Any, path: Path) -> None:
    openvino_engine.core()  # before the first import of OpenVINO: this turns telemetry off
    import openvino

    model = openvino.convert_model(function, share_weights=False)
    # 16-bit weights, the default, would change probabilities by about 1e-3.
    openvino.save_model(model, path, compress_to_fp16=False)


def open_converted(path: Path) -> Network:
    """Open a converted file on its own runtime: images [N, S, S, 3] -> probabilities [N, C]."""
    return {".onnx": _open_onnx, ".tflite": _open_litert, ".xml": _open_openvino}[path.suffix](path)


def _open_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _open_litert(path: Path) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    with _quiet():
        runner = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda images: runner(images=images)["probabilities"]


def _open_openvino(path: Path) -> Network:
    # On CPUs with bfloat16, OpenVINO uses it by default.
    model = openvino_engine.core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: model(images)["probabilities"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress that converters print to stdout, where scripts print their results."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
