"""A flat Keras classifier as a list of steps, which can be run from the standardised image.

    network = read_network(model)
    standardised = network.standardise(images)       # input of the backbone, [N, S, S, 3]
    scores = network.scores(standardised)            # calibrated logits [N, C]

Occlusion covers a patch *after* the standardisation, so that the rest of the image keeps its mean
and spread and only the patch changes. It also needs each layer's kernel size and stride. Both
require access to the graph, not only to the model as one function.

A convolution with the BatchNorm and ReLU after it is one step: in inference BatchNorm is a factor
and an offset per channel, which are folded into kernel and bias. On a CPU the passes over memory
that this saves take as long as ResNet50's convolutions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.models import backbones


@dataclass(frozen=True)
class Step:
    """One layer or operation with its arguments, in which KerasTensors are placeholders.

    `followers` are the BatchNorm and activation fused into a convolution. `output` is the
    KerasTensor after them.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    followers: tuple[Any, ...]
    output: Any

    @property
    def inputs(self) -> list[Any]:
        """The KerasTensors among the arguments."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        return [x for x in leaves if isinstance(x, keras.KerasTensor)]

    @property
    def multiplications(self) -> float:
        """Multiplications per image of a convolution or dense layer; 0 for all others."""
        operation = self.operation
        if is_convolution(operation):
            return float(np.prod(operation.kernel.shape) * np.prod(operation.output.shape[1:3]))
        if isinstance(operation, keras.layers.Dense):
            return float(np.prod(operation.kernel.shape))
        return 0.0


@dataclass(frozen=True)
class Network:
    """The steps before and after the standardisation; `standardised` is the tensor in between.

    `is_standardised` is False for a model without that preprocessing; then `standardised` is its
    input. `result` is the tensor of the calibrated logits, or of the probabilities if the model has
    no layer `temperature`.
    """

    before: tuple[Step, ...]
    after: tuple[Step, ...]
    images: Any
    standardised: Any
    is_standardised: bool
    result: Any
    result_is_probability: bool

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.result.shape[-1])

    def standardise(self, images: tf.Tensor) -> tf.Tensor:
        """Standardise images float32 [N, S, S, 3] in 0..255 as the model does."""
        values = {id(self.images): images}
        run(self.before, values)
        return values[id(self.standardised)]

    def standardise_as(self, images: tf.Tensor, cover: tf.Tensor) -> tf.Tensor:
        """Standardise `cover` [N, S, S, 3] in 0..255 by the mean and spread of `images`."""
        if not self.is_standardised:
            return cover
        mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
        spread = tf.math.reduce_std(images, axis=[1, 2, 3], keepdims=True)
        return (cover - mean) / (spread + 1.0) * backbones.GRAY_SPREAD + backbones.GRAY_MEAN

    def weights(self) -> dict[int, tuple[tf.Tensor, tf.Tensor]]:
        """Return the folded kernel and bias of each convolution, by id of the step."""
        return {id(s): folded(s) for s in self.after if is_convolution(s.operation)}

    def scores(self, standardised: tf.Tensor, weights: dict | None = None) -> tf.Tensor:
        """Map standardised images [N, S, S, 3] to scores [N, C]; softmax gives probabilities."""
        values = {id(self.standardised): standardised}
        run(self.after, values, self.weights() if weights is None else weights)
        return self.as_scores(values[id(self.result)])

    def as_scores(self, result: tf.Tensor) -> tf.Tensor:
        """Return the value of `result` as scores: logits unchanged, probabilities as logarithms."""
        if self.result_is_probability:
            return tf.math.log(tf.maximum(result, 1e-30))
        return result


def read_network(model: keras.Model) -> Network:
    """List the steps of a flat float32 classifier; shares its variables.

    Raises ValueError for a model that is not functional.
    """
    steps = steps_of(model)
    images, result = model.inputs[0], model.outputs[0]
    is_probability = True
    for step in steps:
        if getattr(step.operation, "name", "") == "temperature":
            result, is_probability = step.output, False
    cut = next((i for i, s in enumerate(steps) if _ends_standardisation(s)), None)
    before = steps[: cut + 1] if cut is not None else []
    after = fuse(steps[len(before) :], keep=[result])
    # Steps after the scores are not run.
    last = next(i for i, s in enumerate(after) if s.output is result)
    return Network(
        before=tuple(before),
        after=tuple(after[: last + 1]),
        images=images,
        standardised=before[-1].output if before else images,
        is_standardised=bool(before),
        result=result,
        result_is_probability=is_probability,
    )


def steps_of(model: keras.Model) -> list[Step]:
    """Return all operations of a flat model in execution order, one step each.

    Raises ValueError for a model that is not functional.
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        raise ValueError("only a functional model can be read layer by layer")
    steps: list[Step] = []

    def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(Step(operation, args, kwargs, (), operation.output))
        return operation.output

    # Cloning calls every operation with its arguments, which Keras offers in no other public way.
    # The clone itself, which has the same layers and tensors, is discarded.
    keras.models.clone_model(
        model, input_tensors=model.input, clone_function=lambda x: x, call_function=record
    )
    return steps


def _ends_standardisation(step: Step) -> bool:
    """Return whether a step is the `+ GRAY_MEAN` of `backbones.standardise`, of any version."""
    return (
        type(step.operation).__name__ == "Add"
        and not isinstance(step.operation, keras.Layer)
        and len(step.args) == 2
        and isinstance(step.args[1], float)
        and step.args[1] == backbones.GRAY_MEAN
    )


def fuse(steps: Sequence[Step], keep: Sequence[Any]) -> list[Step]:
    """Fuse a BatchNorm, a ReLU, or both into the convolution before them.

    They are fused if nothing else reads the intermediate output. keep: KerasTensors that must
    remain the output of a step.
    """
    readers: dict[int, int] = {}
    for step in steps:
        for x in step.inputs:
            readers[id(x)] = readers.get(id(x), 0) + 1
    fused: list[Step] = []
    position: dict[int, int] = {}  # of the step that computes a tensor
    for step in steps:
        source = position.get(id(step.inputs[0])) if len(step.inputs) == 1 else None
        if source is not None and readers[id(step.inputs[0])] == 1:
            before = fused[source]
            if all(before.output is not x for x in keep) and _can_follow(before, step.operation):
                fused[source] = Step(
                    before.operation,
                    before.args,
                    before.kwargs,
                    (*before.followers, step.operation),
                    step.output,
                )
                position[id(step.output)] = source
                continue
        position[id(step.output)] = len(fused)
        fused.append(step)
    return fused


def _can_follow(before: Step, operation: Any) -> bool:
    if not is_convolution(before.operation):
        return False
    if isinstance(operation, keras.layers.BatchNormalization):
        linear = before.operation.activation is keras.activations.linear
        return linear and not before.followers and operation.axis in (-1, 3)
    is_relu = isinstance(operation, keras.layers.Activation) and (
        operation.activation is keras.activations.relu
    )
    return is_relu and not any(isinstance(f, keras.layers.Activation) for f in before.followers)


def is_convolution(operation: Any) -> bool:
    """Return whether an operation is a plain convolution: neither dilated nor grouped."""
    return (
        type(operation) is keras.layers.Conv2D
        and operation.groups == 1
        and tuple(operation.dilation_rate) == (1, 1)
        and operation.padding in ("same", "valid")
        and operation.data_format == "channels_last"
    )


def folded(step: Step) -> tuple[tf.Tensor, tf.Tensor]:
    """Return kernel [k, k, in, out] and bias [out] of a convolution, float32, BatchNorm folded in.

    BatchNorm in inference is (x - mean) / sqrt(variance + epsilon) * gamma + beta (Ioffe and
    Szegedy 2015), a factor and an offset per channel.
    """
    layer = step.operation
    kernel = tf.convert_to_tensor(layer.kernel)
    bias = tf.zeros([layer.filters]) if layer.bias is None else tf.convert_to_tensor(layer.bias)
    norm = norm_after(step)
    if norm is not None:
        factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            factor *= norm.gamma
        bias = (bias - norm.moving_mean) * factor
        if norm.center:
            bias += norm.beta
        kernel *= factor
    return kernel, bias


def norm_after(step: Step) -> keras.layers.BatchNormalization | None:
    """Return the BatchNorm fused into a convolution step, or None."""
    norms = [f for f in step.followers if isinstance(f, keras.layers.BatchNormalization)]
    return norms[0] if norms else None


def convolve(
    step: Step, x: tf.Tensor, weights: tuple[tf.Tensor, tf.Tensor], padding: str
) -> tf.Tensor:
    """Run a convolution step with its followers on [N, H, W, C]; padding SAME or VALID."""
    layer = step.operation
    kernel, bias = weights
    y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, list(layer.strides), padding), bias)
    relu = (layer.activation, *(getattr(f, "activation", None) for f in step.followers))
    if keras.activations.relu in relu:
        return tf.nn.relu(y)
    return layer.activation(y)


def run(
    steps: Sequence[Step],
    values: dict[int, Any],
    weights: dict[int, tuple[tf.Tensor, tf.Tensor]] | None = None,
    call: Callable[..., Any] | None = None,
) -> None:
    """Run steps in inference, reading and filling `values`: {id of KerasTensor: value}.

    `call(step, args, kwargs)` may replace the computation of a step; if it returns NotImplemented,
    the step is run as usual.
    """
    for step in steps:
        args, kwargs = keras.tree.map_structure(
            lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x,
            (step.args, step.kwargs),
        )
        result = NotImplemented if call is None else call(step, args, kwargs)
        if result is NotImplemented:
            result = plainly(step, args, kwargs, weights or {})
        values[id(step.output)] = result


def plainly(
    step: Step, args: Any, kwargs: dict[str, Any], weights: dict[int, tuple[tf.Tensor, tf.Tensor]]
) -> tf.Tensor:
    """Run one step on tensors in the usual way."""
    if is_convolution(step.operation) and id(step) in weights:
        return convolve(step, args[0], weights[id(step)], step.operation.padding.upper())
    if isinstance(step.operation, (keras.layers.BatchNormalization, keras.layers.Dropout)):
        kwargs = {**kwargs, "training": False}
    return step.operation(*args, **kwargs)


def in_float32(model: keras.Model) -> keras.Model:
    """Return the model itself, or its copy in float32 if it computes in lower precision.

    Weights are float32 with every policy, so the copy differs from the model only by rounding.
    """
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    if all(x.compute_dtype == "float32" for x in layers):
        return model

    def copy(operation: Any) -> Any:
        config = operation.get_config()
        if isinstance(operation, keras.Layer):
            config = {**config, "dtype": "float32"}
        return operation.__class__.from_config(config)

    exact = keras.models.clone_model(model, clone_function=copy)
    exact.set_weights(model.get_weights())
    return exact
