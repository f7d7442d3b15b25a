"""The training loop: sum the gradients over the replicas, clip them and apply them.

Keras's `fit` clips the gradients of each replica before it sums them, and fails under
`MultiWorkerMirroredStrategy`; this loop uses only public functions of TensorFlow and Keras.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from cxr_tf.models.batch_norm_folding import cancelled_biases
from cxr_tf.models.replicas import batch_part
from cxr_tf.training.epochs import EpochEnd

# A function from the targets and outputs of a batch to the loss of each image, float32 [N], which
# training minimises, and to further measures to log, by name.
Objective = Callable[[Any, Any], tuple[tf.Tensor, Mapping[str, tf.Tensor]]]


def fit(
    trainer: keras.Model,
    objective: Objective,
    batches: Any,
    *,
    epochs: range,
    steps: int,
    epoch_end: EpochEnd,
    strategy: tf.distribute.Strategy,
) -> None:
    """Train for the given epochs of `steps` steps each, on batches from `distribute_batches`."""
    step = train_step(trainer, objective, strategy, batches.element_spec)
    iterator = iter(batches)
    trainer.stop_training = False
    for epoch in epochs:
        totals: dict[str, float] = {}
        images = 0
        for number in range(steps):
            count, sums = step(next(iterator))
            images += int(count)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            logs = {name: total / images for name, total in totals.items()}
            epoch_end.on_train_batch_end(number, logs)
        epoch_end.on_epoch_end(epoch, logs)
        if trainer.stop_training:
            break


def train_step(
    trainer: keras.Model,
    objective: Objective,
    strategy: tf.distribute.Strategy,
    element_spec: Any,
) -> Callable[[Any], tuple[tf.Tensor, dict[str, tf.Tensor]]]:
    """Return a compiled training step for one batch from `distribute_batches`.

    The step returns the number of images in the batch, and the sums of the loss and the measures
    over them. It minimises the mean loss over the complete batch, even if the replicas have
    different numbers of images.
    """
    optimizer = trainer.optimizer
    variables = trainer.trainable_variables
    idle = {id(bias) for bias in cancelled_biases(trainer)}

    def on_replica(inputs: Any, targets: Any, part: tf.Tensor) -> Any:
        first, total = part[0], part[1]
        with tf.GradientTape() as tape:
            with batch_part(first, total):
                outputs = trainer(inputs, training=True)
            losses, measures = objective(targets, outputs)
            loss = tf.reduce_sum(losses) / tf.cast(total, losses.dtype)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        sums = {
            "loss": tf.reduce_sum(losses),
            **{name: tf.reduce_sum(values) for name, values in measures.items()},
        }
        if strategy.num_replicas_in_sync > 1:
            gradients, sums = tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, (gradients, sums)
            )
        gradients = [
            tf.zeros_like(gradient) if id(variable) in idle else gradient
            for variable, gradient in zip(variables, gradients, strict=True)
        ]
        optimizer.apply(gradients, variables)
        return total, sums

    @tf.function(autograph=False, input_signature=[element_spec])
    def step(batch: Any) -> Any:
        return strategy.run(on_replica, args=batch)

    def run(batch: Any) -> Any:
        return tf.nest.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], step(batch)
        )

    return run
