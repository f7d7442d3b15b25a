"""AdamW with a warm-up, a cosine schedule and averaged weights."""

from typing import Any

import keras
import tensorflow as tf


def averaged_adamw(
    rate: float, *, steps: int, weight_decay: float, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """Return AdamW with warm-up, cosine decay to a hundredth of `rate`, and averaged weights.

    steps: steps of the whole run. Weight decay applies to kernels, not to biases and normalisation.
    With the precision mixed_float16 the loss is scaled, because small gradients would underflow.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - steps // 20),
        alpha=0.01,
        warmup_target=rate,
        warmup_steps=max(1, steps // 20),
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=weight_decay,
        global_clipnorm=1.0,
        use_ema=True,
        # The average covers about a twentieth of the run: long enough to smooth the variation from
        # epoch to epoch, short enough to forget the start.
        ema_momentum=1 - 1 / max(2, steps // 20),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras scales the loss by itself only for a compiled model whose own policy is float16; here
    # the trained model ends with float32 logits.
    scaled = precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer


def build_variables(trainer: keras.Model, targets: Any) -> None:
    """Create the variables of optimizer, losses and metrics of a compiled model.

    targets: those of one image, as in a training batch. A step that creates variables is traced a
    second time, which takes ten seconds for ResNet50.
    """
    trainer.optimizer.build(trainer.trainable_variables)
    outputs = trainer(tf.zeros([1, *trainer.input_shape[1:]]), training=False)
    trainer.compute_loss(None, targets, outputs)
    trainer.compute_metrics(None, targets, outputs)
    trainer.reset_metrics()
