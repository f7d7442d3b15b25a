"""Fold BatchNorm into the convolution before it, which saves passes over memory.

    trainer = fold_frozen_norms(logits_of(model))     # shares the variables; for training
    model = fold_norms(model)                         # a copy with new variables; for export

In inference, and in training if it is frozen, BatchNorm is a factor and an offset per channel,
which can be folded into kernel and bias (`layer_graph.folded`). This saves a pass over each feature
map, forward and backward.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cxr_tf.models.layer_graph import Step, folded, fuse, is_convolution, norm_after, steps_of


class NormedConvolution(keras.layers.Layer):
    """A convolution and the frozen BatchNorm after it as one layer, with the variables of both.

    The input is [N, H, W, C]. Every call folds the BatchNorm into kernel and bias in float32, so
    that the kernel's gradient is the same as with a separate BatchNorm. The folded kernel and bias
    are then cast to the convolution's precision.
    """

    def __init__(self, step: Step) -> None:
        # In float32, because Keras would round the kernel before it is folded.
        super().__init__(name=step.operation.name, dtype="float32", autocast=False)
        self.convolution, self.norm = step.operation, norm_after(step)
        self._step = step
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Map feature maps [N, H, W, C] to [N, H', W', filters]."""
        convolution = self.convolution
        x, kernel, bias = (tf.cast(v, convolution.compute_dtype) for v in (x, *folded(self._step)))
        padding = convolution.padding.upper()
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, list(convolution.strides), padding), bias)

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Return the output spec of the convolution."""
        shape = self.convolution.compute_output_shape(x.shape)
        return keras.KerasTensor(shape, self.convolution.compute_dtype)


def fold_frozen_norms(model: keras.Model) -> keras.Model:
    """Fold every frozen BatchNorm into the convolution before it; shares layers and variables.

    The result is for training and inference; its variables may be in a different order. Returns the
    model itself if nothing can be folded. Do not save the result or pass it to
    `layer_graph.read_network`, which would read the unfolded graph.
    """
    steps = _foldable(model, lambda norm: not norm.trainable)
    return _without_norms(
        model, steps, lambda x: NormedConvolution(steps[x.name]) if x.name in steps else x
    )


def fold_norms(model: keras.Model) -> keras.Model:
    """Return a copy of a model for inference with every BatchNorm folded into its convolution.

    The copy has the precision and the layer names of the model, without the folded BatchNorm. Up to
    rounding, its outputs equal those of `model(..., training=False)`. Returns the model itself if
    nothing can be folded.
    """
    steps = _foldable(model, lambda norm: True)

    def copy(operation: Any) -> Any:
        config = operation.get_config()
        if operation.name in steps:
            config["use_bias"] = True
        return operation.__class__.from_config(config)

    light = _without_norms(model, steps, copy)
    if light is not model:
        for layer in light.layers:
            if layer.name in steps:
                layer.set_weights([x.numpy() for x in folded(steps[layer.name])])
            elif layer.weights:
                layer.set_weights(model.get_layer(layer.name).get_weights())
    return light


def cancelled_biases(model: keras.Model) -> list[keras.Variable]:
    """Return the biases of convolutions before a trainable BatchNorm, which subtracts them again.

    Their gradient is 0 except for rounding errors, which Adam would scale up to full steps.
    """
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    normed = {id(norm.input) for norm in norms if norm.trainable}
    return [
        layer.bias
        for layer in model.layers
        if is_convolution(layer)
        and layer.activation is keras.activations.linear
        and layer.bias is not None
        and id(layer.output) in normed
    ]


def _foldable(
    model: keras.Model, wanted: Callable[[keras.layers.BatchNormalization], bool]
) -> dict[str, Step]:
    """Return, by name, the convolutions whose output is read only by a wanted BatchNorm."""
    steps = fuse(steps_of(model), keep=model.outputs)
    norms = [norm_after(step) for step in steps]
    return {
        step.operation.name: step
        for step, norm in zip(steps, norms, strict=True)
        if norm is not None and wanted(norm)
    }


def _without_norms(
    model: keras.Model, steps: dict[str, Step], replace: Callable[[Any], Any]
) -> keras.Model:
    """Rebuild the graph with its operations replaced and the BatchNorm of `steps` omitted."""
    if not steps:
        return model
    omitted = {norm.name for step in steps.values() if (norm := norm_after(step))}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if operation.name in omitted else operation(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=replace, call_function=call)
