"""BatchNorm in inference put into the convolution before it: the same function, fewer passes.

    trainer = fold_frozen_norms(logits_of(model))     # the same variables; for training
    model = fold_norms(model)                         # a copy with variables of its own; for export

In inference, and in training where it is frozen, BatchNorm is a factor and an offset by channel,
which fit into kernel and bias (`network.folded`). What is saved is a pass over each feature map,
forward and backward.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from cxr_tf.models.layer_graph import Step, folded, fuse, norm_behind, steps_of


class NormedConvolution(keras.layers.Layer):
    """A convolution with the frozen BatchNorm behind it; both layers' variables, none of its own.

    Called on [N, H, W, C]. Kernel and bias are put together in float32 in every step, so that the
    kernel learns as it would with the BatchNorm behind it, and are then brought to the precision of
    the convolution.
    """

    def __init__(self, step: Step) -> None:
        # In float32, because Keras would round the kernel before the statistics go into it.
        super().__init__(name=step.operation.name, dtype="float32", autocast=False)
        self.convolution, self.norm = step.operation, norm_behind(step)
        self._step = step
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Feature maps [N, H, W, C] -> [N, H', W', filters]."""
        convolution = self.convolution
        x, kernel, bias = (tf.cast(v, convolution.compute_dtype) for v in (x, *folded(self._step)))
        padding = convolution.padding.upper()
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, list(convolution.strides), padding), bias)

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """That of the convolution."""
        shape = self.convolution.compute_output_shape(x.shape)
        return keras.KerasTensor(shape, self.convolution.compute_dtype)


def fold_frozen_norms(model: keras.Model) -> keras.Model:
    """The same layers and variables, with every frozen BatchNorm in the convolution before it.

    The variables may come in another order. For training and inference; the model itself where
    there is none. It is not for saving, and not for `network.read_network`, which would find the
    unfolded graph.
    """
    steps = _foldable(model, lambda norm: not norm.trainable)
    return _without_norms(
        model, steps, lambda x: NormedConvolution(steps[x.name]) if x.name in steps else x
    )


def fold_norms(model: keras.Model) -> keras.Model:
    """A copy of a model for inference in which every convolution does its BatchNorm.

    In the precision of the model. Layers keep their names; those of a BatchNorm that went into a
    convolution are gone. Outputs equal those of `model(..., training=False)` but for rounding. The
    model itself where nothing can be folded.
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


def _foldable(
    model: keras.Model, wanted: Callable[[keras.layers.BatchNormalization], bool]
) -> dict[str, Step]:
    """The convolutions with a BatchNorm behind them that nothing else reads, by name."""
    steps = fuse(steps_of(model), keep=model.outputs)
    norms = [norm_behind(step) for step in steps]
    return {
        step.operation.name: step
        for step, norm in zip(steps, norms, strict=True)
        if norm is not None and wanted(norm)
    }


def _without_norms(
    model: keras.Model, steps: dict[str, Step], replace: Callable[[Any], Any]
) -> keras.Model:
    """The graph with its operations replaced, and the BatchNorm of `steps` left out."""
    if not steps:
        return model
    left_out = {norm.name for step in steps.values() if (norm := norm_behind(step))}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if operation.name in left_out else operation(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=replace, call_function=call)
