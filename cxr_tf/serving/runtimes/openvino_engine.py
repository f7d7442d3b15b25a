"""Signatures of our SavedModels on OpenVINO: on a CPU the same numbers in less time.

    classify = on_openvino(loaded.signatures["serving_default"], example=content)
    classify(image_bytes=tf.constant([content]))["probabilities"]

A signature is cut in three. TensorFlow decodes the files by the SavedModel's own operations: the
same pixels to the bit, the same error for a bad image. OpenVINO runs the network. TensorFlow makes
of the network's numbers what takes strings or float64: labels, neighbours.
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

# Answers that are a network's own. All others of a signature are made of these.
NETWORK_ANSWERS = ("probabilities", "embedding", "score", "anomaly_map", "reconstruction")

# Networks that OpenVINO runs more slowly in float32 than TensorFlow (`benchmark.py folder`). `auto`
# leaves them to TensorFlow.
SLOWER_ON_OPENVINO = ("alexnet",)

# The most by which a float32 answer may differ from TensorFlow's.
TOLERANCE = 1e-4

# Counts the graphs that were taken apart: functions have names once in a process.
_number = itertools.count()

# What is not in 8 bits is calculated in float32.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

# Phantoms in whose activations int8 finds its scales. Not in the images that are asked about: the
# answer to one would depend on the others, and its cost on validation would be that of another
# model.
CALIBRATION_IMAGES, CALIBRATION_SEED = 32, 20_003


class CannotRun(Exception):
    """A signature that OpenVINO does not run, or not rightly; the message says why."""


def takes_openvino(engine: str, precision: str = "float32") -> bool:
    """Whether OpenVINO is to be tried. `auto` does where it is installed and there is no GPU.

    Raises UserError where OpenVINO is asked for and not installed, and for a precision that the
    engine or the CPU does not have.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise UserError(
            "--engine openvino needs OpenVINO: pip install -r requirements-openvino.txt"
        )
    if precision != "float32":
        if engine != "openvino":
            raise UserError(f"--engine-precision {precision} goes with --engine openvino")
        if precision == "int8":
            if importlib.util.find_spec("nncf") is None:
                raise UserError(
                    "--engine-precision int8 needs NNCF: pip install -r requirements-openvino.txt"
                )
        elif "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError(f"this CPU does not calculate in {precision}: take float32")
    if engine == "auto":
        return installed and not tf.config.list_physical_devices("GPU")
    return engine == "openvino"


def on_openvino(function: Any, *, example: bytes, precision: str = "float32") -> Signature:
    """A signature of a loaded SavedModel with its network on OpenVINO; called as the signature is.

    function: image_bytes string [N] -> named answers. precision: float32, bfloat16 or int8, in
    which the network is calculated. example: an image file, on which float32 is compared with
    TensorFlow.

    Raises CannotRun for what is not files -> pixels -> one run of a network -> answers, and for an
    answer that differs from TensorFlow's; whatever OpenVINO raises besides.
    """
    compiled = _compiled(function, precision)
    if precision == "float32":
        contents = tf.constant([example])
        check_equal(compiled(image_bytes=contents), function(image_bytes=contents))
    return compiled


def check_equal(found: dict[str, tf.Tensor], expected: dict[str, tf.Tensor]) -> None:
    """Raises CannotRun where a float answer is off by more than TOLERANCE.

    Off is the largest difference; of an answer with values above 1, over the largest of them.
    """
    for name, values in expected.items():
        if values.dtype.is_floating:
            right = values.numpy()
            off = np.abs(found[name].numpy() - right).max() / max(1.0, np.abs(right).max())
            if not off <= TOLERANCE:  # in this form NaN counts too
                raise CannotRun(f"'{name}' differs from TensorFlow's by {off:.1g}")


def _compiled(function: Any, precision: str) -> Signature:
    answers = dict(zip(sorted(function.structured_outputs), function.outputs, strict=True))
    if "heatmap" in answers:
        raise CannotRun("it covers the image bit by bit, and computes only what each patch changes")
    nodes, library = _inlined(function)
    sources = {name: _source(nodes, tensor.name) for name, tensor in answers.items()}
    pixels, shape = _pixels(nodes)
    cuts = _network_ends(nodes, sources)
    rest = [tensor for tensor in sources.values() if tensor not in cuts]

    image_bytes = tf.TensorSpec([None], tf.string)
    numbers = tf.TensorSpec(None, tf.float32)
    decode = _part(nodes, library, {function.inputs[0].name: image_bytes}, [pixels], control=True)
    network = _compile(
        _graph(nodes, library, {pixels: tf.TensorSpec(shape, tf.uint8)}, cuts), cuts, precision
    )
    # Novelty needs statistics of the pixels too; they are cheap, and computed by TensorFlow.
    feeds = {**dict.fromkeys(cuts, numbers), pixels: tf.TensorSpec(shape, tf.uint8)}
    again = _needed(nodes, rest, until={_node_of(tensor) for tensor in feeds})
    if any("Conv" in nodes[name].op for name in again):
        raise CannotRun("its answers need more of the image than one run of the network")
    finish = _part(nodes, library, feeds, rest)

    def call(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = decode(image_bytes)[0]
        found = network(images.numpy())
        numbers = [tf.constant(found[cut]) for cut in cuts]
        values = dict(zip([*cuts, *rest], [*numbers, *finish(*numbers, images)], strict=True))
        return {name: values[tensor] for name, tensor in sources.items()}

    return call


def _inlined(function: Any) -> tuple[dict[str, Any], Any]:
    """Nodes by name, all calls inlined and all variables constants; and the graph's functions."""
    from tensorflow.python.framework import convert_to_constants as freezing

    # The two steps of `convert_variables_to_constants_v2` without its third, to build a function of
    # the whole: it is not needed here, takes longer than everything else, and puts its functions in
    # the place of those that the loaded model has under the same names.
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
    """The decoded images, what `serving.decode_images` ends with: uint8 [N, S, S, 1]."""
    found = [
        node
        for node in nodes.values()
        if node.op == "EnsureShape" and node.attr["T"].type == tf.uint8.as_datatype_enum
    ]
    if len(found) != 1:
        raise CannotRun("it does not decode its images once")
    return f"{found[0].name}:0", tf.TensorShape(found[0].attr["shape"].shape)


def _network_ends(nodes: dict[str, Any], sources: dict[str, str]) -> list[str]:
    """The tensors that a network gives: of nearest neighbours, its embedding, else its answers."""
    double = tf.float64.as_datatype_enum
    casts = {n.name for n in nodes.values() if n.op == "Cast" and n.attr["DstT"].type == double}
    # The index is searched in float64; what becomes so first is the embedding.
    for name in casts:
        embedding = nodes[name].input[0]
        if not casts & _needed(nodes, [embedding]):
            return [_source(nodes, embedding)]
    return [tensor for name, tensor in sources.items() if name in NETWORK_ANSWERS]


def _part(
    nodes: dict[str, Any],
    library: Any,
    feeds: dict[str, tf.TensorSpec],
    fetches: Sequence[str],
    *,
    control: bool = False,
) -> Any:
    """A part of a graph as a function: tensors `feeds`, in this order -> list of `fetches`."""
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
    """A GraphDef of what `fetches` need, with placeholders for `feeds`.

    Without `control` nothing is waited for: outside of the decoding, that is what ties a whole
    inlined function to its inputs, for nothing.
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
            raise CannotRun("its answers need more of the image than one run of the network")
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
    """Names of the nodes that tensors are computed from, back to those in `until`."""
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
    """The same tensor where it is computed: an answer stands behind a row of copies."""
    while nodes[_node_of(tensor)].op == "Identity":
        tensor = nodes[_node_of(tensor)].input[0]
    return tensor if ":" in tensor else f"{tensor}:0"


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _core() -> Any:
    # Each import of OpenVINO, each conversion is otherwise reported to Google Analytics. Without
    # this package, which does it, it reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _compile(graph: Any, outputs: Sequence[str], precision: str) -> Any:
    """The network of a GraphDef: pixels uint8 [N, S, S, 1] -> {name of a tensor: its values}."""
    core = _core()
    import openvino

    network = tf.Graph()
    with network.as_default():
        tf.graph_util.import_graph_def(graph, name="")

    # With shared weights the graph would have to stay as long as the model.
    model = openvino.convert_model(network, output=list(outputs), share_weights=False)
    if precision == "int8":
        model = _quantised(model)
    # Where the CPU has bfloat16, OpenVINO would take it by itself. All cores work on one batch at a
    # time; batches come one after the other here.
    hints = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(model, "CPU", hints)


def _quantised(model: Any) -> Any:
    """The network with weights and activations in 8 bits, but for its last layer."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    size = model.input(0).partial_shape[1].get_length()
    images = [
        phantom(FINDINGS[k % 3], seed=CALIBRATION_SEED, patient=k, size=size).image[None, ..., None]
        for k in range(CALIBRATION_IMAGES)
    ]
    # Its progress bars go where predict.py prints its table.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            # With the last layer in 8 bits a tenth of the decisions on three classes changed,
            # without a thirtieth; it costs no time.
            ignored_scope=nncf.IgnoredScope(patterns=[".*/logits.*"], validate=False),
        )
