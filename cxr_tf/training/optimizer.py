"""AdamW with a warm-up, a cosine schedule and averaged weights."""

from typing import Any

import keras


class SummedGradientAdamW(keras.optimizers.AdamW):
    """AdamW for gradients that are already summed over the replicas.

    Keras's own AdamW clips before it sums, so that each replica's gradient is clipped separately:
    with `global_clipnorm=1.0` a step on four replicas is almost twice as large as on one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The only private name of Keras that training uses. If Keras renamed it, gradients would be
        # summed twice.
        if not hasattr(keras.optimizers.AdamW, "_all_reduce_sum_gradients"):
            raise RuntimeError(
                "this version of Keras sums the gradients of replicas differently: install the one "
                "in requirements.txt"
            )

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


def averaged_adamw(
    rate: float, *, steps: int, weight_decay: float, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """Return AdamW with warm-up, cosine decay to a hundredth of `rate`, and averaged weights.

    steps: the number of steps of the complete run. Weight decay applies to kernels, but not to
    biases and normalisation layers. With the precision mixed_float16 the loss is scaled, because
    small gradients would underflow.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - steps // 20),
        alpha=0.01,
        warmup_target=rate,
        warmup_steps=max(1, steps // 20),
    )
    optimizer = SummedGradientAdamW(
        schedule,
        weight_decay=weight_decay,
        global_clipnorm=1.0,
        use_ema=True,
        # The average covers about a twentieth of the run: long enough to smooth the variation from
        # epoch to epoch, short enough to forget the start.
        ema_momentum=1 - 1 / max(2, steps // 20),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras scales the loss automatically only for a compiled model whose own policy is float16;
    # here the model ends with float32 logits.
    scaled = precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
