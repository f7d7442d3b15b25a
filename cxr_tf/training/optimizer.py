"""AdamW with a warm-up, a cosine schedule and averaged weights."""

from typing import Any

import keras
import tensorflow as tf


class FusedAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov and Hutter 2019) with the update of a variable in one pass over memory.

    The same numbers as `keras.optimizers.AdamW` but for rounding. Keras's update is a dozen
    operations with as many copies of the variable, and it computes the rate for each variable anew:
    that was a quarter of a step of AlexNet, and a third of the time in which ResNet50 is traced.
    """

    def __init__(self, learning_rate: Any, *, decay: float, **others: Any) -> None:
        super().__init__(learning_rate, **others)
        self._decay = decay

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Decays one variable and updates it by its gradient, of the same shape."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        rate = tf.cast(learning_rate, dtype)
        if self._use_weight_decay(variable):
            variable.assign_sub(variable * (rate * self._decay))
        steps = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.constant(self.beta_1, dtype), steps),
            beta2_power=tf.pow(tf.constant(self.beta_2, dtype), steps),
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, dtype),
        )


def averaged_adamw(
    rate: float, *, steps: int, weight_decay: float, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """AdamW under warm-up and cosine to a hundredth of `rate`, with averaged weights beside.

    steps: all steps of the run. Kernels decay, biases and normalisation do not. Under the precision
    mixed_float16 the loss is scaled, without which small gradients would be 0.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - steps // 20),
        alpha=0.01,
        warmup_target=rate,
        warmup_steps=max(1, steps // 20),
    )
    optimizer = FusedAdamW(
        schedule,
        decay=weight_decay,
        global_clipnorm=1.0,
        use_ema=True,
        # Averages over about a twentieth of the run: long enough to calm the swings from epoch
        # to epoch, short enough to forget the start.
        ema_momentum=1 - 1 / max(2, steps // 20),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras scales by itself only what is compiled as a whole model of that policy, and what is
    # trained here ends at the logits.
    scaled = precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer


def build_variables(trainer: keras.Model, targets: Any) -> None:
    """Makes the variables of optimizer, losses and metrics of a compiled model.

    targets: those of one image, as in a batch of training. A step that makes variables is traced a
    second time, and to trace that of ResNet50 takes ten seconds.
    """
    trainer.optimizer.build(trainer.trainable_variables)
    outputs = trainer(tf.zeros([1, *trainer.input_shape[1:]]), training=False)
    trainer.compute_loss(None, targets, outputs)
    trainer.compute_metrics(None, targets, outputs)
    trainer.reset_metrics()
