"""Run the networks of exported models on OpenVINO, which is faster on CPUs.

    classify = on_openvino(loaded.signatures["serving_default"], example=content)
    classify(image_bytes=tf.constant([content]))["probabilities"]

A signature is split into three parts. TensorFlow decodes the files with the operations of the
SavedModel, so that pixels and errors are identical. OpenVINO runs the network. TensorFlow computes
the rest from its outputs, such as labels (strings) and nearest neighbours (float64).
"""

import contextlib
import importlib.util
import io
import itertools
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.data.sources.phantoms import FINDINGS, phantom
from cxr_tf.errors import UserError

Signature = Callable[..., dict[str, tf.Tensor]]

# Outputs of the network. All other outputs of a signature are computed from these.
NETWORK_OUTPUTS = ("probabilities", "embedding", "score", "anomaly_map", "reconstruction")

# Networks that are slower on OpenVINO than on TensorFlow in float32 (`benchmark.py folder`); `auto`
# runs them on TensorFlow.
SLOWER_ON_OPENVINO = ("alexnet",)

# The largest allowed difference between OpenVINO's and TensorFlow's values of a float32 output.
TOLERANCE = 1e-4

# Suffixes of function names, which must be unique in a process.
_number = itertools.count()

# With int8, layers that are not quantised compute in float32.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

# The int8 scales are calibrated on phantoms. If they were calibrated on the images to predict, each
# prediction would depend on the other images, and the loss of accuracy measured on the validation
# set would be that of a different model.
CALIBRATION_IMAGES, CALIBRATION_SEED = 32, 20_003


class CannotRun(Exception):
    """OpenVINO cannot run a signature, or its results differ; the message states the reason."""


def takes_openvino(engine: str, precision: str = "float32") -> bool:
    """Return whether to use OpenVINO: with `auto`, only if it is installed and there is no GPU.

    Raises UserError if OpenVINO is requested but not installed, or the engine or the CPU does not
    support the precision.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise UserError(
            "--engine openvino needs OpenVINO: pip install -r requirements-openvino.txt"
        )
    if precision != "float32":
        if engine != "openvino":
            raise UserError(f"--engine-precision {precision} needs --engine openvino")
        if precision == "int8":
            if importlib.util.find_spec("nncf") is None:
                raise UserError(
                    "--engine-precision int8 needs NNCF: pip install -r requirements-openvino.txt"
                )
        elif "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError(f"this CPU does not support {precision}: use float32")
    if engine == "auto":
        return installed and not tf.config.list_physical_devices("GPU")
    return engine == "openvino"


def on_openvino(function: Any, *, example: bytes, precision: str = "float32") -> Signature:
    """Return a signature of a loaded SavedModel with its network on OpenVINO.

    function: image_bytes string [N] -> named outputs; precision: the precision of the network,
    float32, bfloat16 or int8; example: an image file, for which float32 outputs are compared with
    TensorFlow's.

    Raises CannotRun for a signature that does not have the form files -> pixels -> one pass through
    a network -> outputs, and for an output that differs from TensorFlow's. Errors of OpenVINO are
    passed on.
    """
    compiled = _compiled(function, precision)
    if precision == "float32":
        contents = tf.constant([example])
        check_equal(compiled(image_bytes=contents), function(image_bytes=contents))
    return compiled


def check_equal(outputs: dict[str, tf.Tensor], expected: dict[str, tf.Tensor]) -> None:
    """Raise CannotRun if a float output differs by more than TOLERANCE.

    The difference is relative to the largest value if that is above 1.
    """
    for name, values in expected.items():
        if values.dtype.is_floating:
            reference = values.numpy()
            difference = np.abs(outputs[name].numpy() - reference).max()
            difference /= max(1.0, np.abs(reference).max())
            if not difference <= TOLERANCE:  # written so that NaN fails too
                raise CannotRun(f"'{name}' differs from TensorFlow's by {difference:.1g}")


def _compiled(function: Any, precision: str) -> Signature:
    outputs = dict(zip(sorted(function.structured_outputs), function.outputs, strict=True))
    if "heatmap" in outputs:
        raise CannotRun("occlusion uses incremental inference, which OpenVINO does not support")
    nodes, library = _inlined(function)
    sources = {name: _source(nodes, tensor.name) for name, tensor in outputs.items()}
    pixels, shape = _pixels(nodes)
    cuts = _network_ends(nodes, sources)
    rest = [tensor for tensor in sources.values() if tensor not in cuts]

    image_bytes = tf.TensorSpec([None], tf.string)
    numbers = tf.TensorSpec(None, tf.float32)
    decode = _part(nodes, library, {function.inputs[0].name: image_bytes}, [pixels], control=True)
    network = _compile(
        _graph(nodes, library, {pixels: tf.TensorSpec(shape, tf.uint8)}, cuts), cuts, precision
    )
    # Novelty also needs pixel statistics, which are cheap and computed by TensorFlow.
    feeds = {**dict.fromkeys(cuts, numbers), pixels: tf.TensorSpec(shape, tf.uint8)}
    recomputed = _needed(nodes, rest, until={_node_of(tensor) for tensor in feeds})
    if any("Conv" in nodes[name].op for name in recomputed):
        raise CannotRun("its outputs need more than one pass of the image through the network")
    finish = _part(nodes, library, feeds, rest)

    def call(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = decode(image_bytes)[0]
        computed = network(images.numpy())
        ends = [tf.constant(computed[cut]) for cut in cuts]
        values = dict(zip([*cuts, *rest], [*ends, *finish(*ends, images)], strict=True))
        return {name: values[tensor] for name, tensor in sources.items()}

    return call


def _inlined(function: Any) -> tuple[dict[str, Any], Any]:
    """Return the nodes of a function by name, and the function library of its graph.

    Calls are inlined, and variables are frozen.
    """
    from tensorflow.python.framework import convert_to_constants as freezing

    # The first two steps of `convert_variables_to_constants_v2`. The third builds a function of the
    # whole graph, which is slow, not needed here, and replaces functions of the loaded model that
    # have the same names.
    data = freezing._FunctionConverterDataInEager(
        func=function, lower_control_flow=False, aggressive_inlining=False
    )
    graph, _ = freezing._replace_variables_by_constants(converter_data=data)
    number = next(_number)
    renamed = {f.signature.name: f"{f.signature.name}_{number}" for f in graph.library.function}
    bodies = [node for f in graph.library.function for node in f.node_def]
    for f in graph.library.function:
        f.signature.name = renamed[f.signature.name]
    for node in [*graph.node, *bodies]:
        for attribute in node.attr.values():
            for called in (attribute.func, *attribute.list.func):
                if called.name:
                    called.name = renamed[called.name]
    return {node.name: node for node in graph.node}, graph.library


def _pixels(nodes: dict[str, Any]) -> tuple[str, tf.TensorShape]:
    """Return the name and shape of the output of `decoding.decode_images`, uint8 [N, S, S, 1]."""
    decoded = [
        node
        for node in nodes.values()
        if node.op == "EnsureShape" and node.attr["T"].type == tf.uint8.as_datatype_enum
    ]
    if len(decoded) != 1:
        raise CannotRun("it does not decode its images exactly once")
    return f"{decoded[0].name}:0", tf.TensorShape(decoded[0].attr["shape"].shape)


def _network_ends(nodes: dict[str, Any], sources: dict[str, str]) -> list[str]:
    """Return the last tensors of the network: for nearest neighbours, the embedding alone."""
    double = tf.float64.as_datatype_enum
    casts = {n.name for n in nodes.values() if n.op == "Cast" and n.attr["DstT"].type == double}
    # The index is searched in float64; the first tensor that is cast to float64 is the embedding.
    for name in casts:
        embedding = nodes[name].input[0]
        if not casts & _needed(nodes, [embedding]):
            return [_source(nodes, embedding)]
    return [tensor for name, tensor in sources.items() if name in NETWORK_OUTPUTS]


def _part(
    nodes: dict[str, Any],
    library: Any,
    feeds: dict[str, tf.TensorSpec],
    fetches: Sequence[str],
    *,
    control: bool = False,
) -> Any:
    """Return a part of a graph as a function from the tensors `feeds` to the tensors `fetches`."""
    graph = _graph(nodes, library, feeds, fetches, control=control)
    whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    return whole.prune(
        [whole.graph.get_tensor_by_name(tensor) for tensor in feeds],
        [whole.graph.get_tensor_by_name(tensor) for tensor in fetches],
    )


def _graph(
    nodes: dict[str, Any],
    library: Any,
    feeds: dict[str, tf.TensorSpec],
    fetches: Sequence[str],
    *,
    control: bool = False,
) -> Any:
    """Return a GraphDef of the nodes that `fetches` need, with placeholders for `feeds`.

    control: keep control dependencies. Outside the decoder, they only make an inlined function wait
    for its inputs.
    """
    fed = {_node_of(tensor): spec for tensor, spec in feeds.items()}
    graph = tf.compat.v1.GraphDef(library=library)
    for name in sorted(fed.keys() | _needed(nodes, fetches, until=fed, control=control)):
        node = graph.node.add()
        if name in fed:
            node.name, node.op = name, "Placeholder"
            node.attr["dtype"].type = fed[name].dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(fed[name].shape.as_proto())
        elif nodes[name].op == "Placeholder":
            raise CannotRun("its outputs need more than one pass of the image through the network")
        else:
            node.CopyFrom(nodes[name])
            kept = [x for x in node.input if control or not x.startswith("^")]
            del node.input[:]
            node.input.extend(kept)
            if "_class" in node.attr:  # colocation, with nodes that may not be in this part
                del node.attr["_class"]
    return graph


def _needed(
    nodes: dict[str, Any],
    tensors: Sequence[str],
    *,
    until: Collection[str] = (),
    control: bool = False,
) -> set[str]:
    """Return the names of the nodes that tensors depend on, back to those in `until`."""
    needed: set[str] = set()
    todo = [_node_of(tensor) for tensor in tensors]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            if name not in until:
                inputs = nodes[name].input
                todo += [_node_of(x) for x in inputs if control or not x.startswith("^")]
    return needed


def _source(nodes: dict[str, Any], tensor: str) -> str:
    """Return the tensor that an output copies through any number of Identity nodes."""
    while nodes[_node_of(tensor)].op == "Identity":
        tensor = nodes[_node_of(tensor)].input[0]
    return tensor if ":" in tensor else f"{tensor}:0"


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def core() -> Any:
    """Import OpenVINO with telemetry disabled, and return its runtime."""
    # OpenVINO would report imports and conversions to Google Analytics. Without this package, it
    # sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _compile(graph: Any, outputs: Sequence[str], precision: str) -> Any:
    """Compile the network of a GraphDef: pixels uint8 [N, S, S, 1] -> {tensor name: values}."""
    runtime = core()
    import openvino

    network = tf.Graph()
    with network.as_default():
        tf.graph_util.import_graph_def(graph, name="")

    # With shared weights the graph would have to outlive the model.
    model = openvino.convert_model(network, output=list(outputs), share_weights=False)
    if precision == "int8":
        model = _quantised(model)
    # On CPUs with bfloat16, OpenVINO uses it by default. Batches run one after the other, so that
    # all cores work on the same batch.
    hints = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return runtime.compile_model(model, "CPU", hints)


def _quantised(model: Any) -> Any:
    """Quantise weights and activations to 8 bits, except those of the last layer."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    size = model.input(0).partial_shape[1].get_length()
    images = [
        phantom(FINDINGS[k % 3], seed=CALIBRATION_SEED, patient=k, size=size).image[None, ..., None]
        for k in range(CALIBRATION_IMAGES)
    ]
    # Progress bars would go to standard output, where predict.py prints its table.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            # With the last layer in 8 bits, a tenth of the three-class labels changed; with it in
            # float32, which costs no time, a thirtieth.
            ignored_scope=nncf.IgnoredScope(patterns=[".*/logits.*"], validate=False),
        )
