"""Train on 1, 2 and 4 virtual CPU devices; run by test_replicas in a separate process.

    python tests/support/replica_training.py OUT.npz [MUTATION]

Virtual devices must be configured before TensorFlow starts. MUTATION breaks one of the parts that
make the results equal, to show that the test would notice.
"""

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tiny_backbone import register

from cxr_tf.classification.fitting import training_model, weighted_cross_entropy
from cxr_tf.models import backbones, mixstyle, replicas
from cxr_tf.models.classifier import build_classifier
from cxr_tf.training import loop, optimizer
from cxr_tf.training.distribution import distribute_batches

STEPS, BATCH, CLASSES = 20, 6, 3

# So large that every gradient is clipped.
CLASS_WEIGHTS = {0: 20.0, 1: 60.0, 2: 40.0}


def strategy_of(count: int) -> tf.distribute.Strategy:
    if count == 1:
        return tf.distribute.get_strategy()
    # Strategies of one process use the same group of collectives, unless configured otherwise.
    tf.distribute.MirroredStrategy._collective_key_base = 1000 * count
    return tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(count)])


def batches(part: range) -> tf.data.Dataset:
    """Return the rows `part` of batches of 6 images, of which 4 replicas get 1, 2, 1 and 2."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS, BATCH, 64, 64, 1)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH))
    images *= rng.uniform(0.2, 1.0, (STEPS, BATCH, 1, 1, 1)).astype(np.float32)
    rows = slice(part.start, part.stop)
    return tf.data.Dataset.from_tensor_slices(
        (np.repeat(images[:, rows], 3, axis=-1), labels[:, rows])
    )


def train(count: int, mutation: str = "") -> dict[str, np.ndarray]:
    """Return the weights after 20 steps with MixStyle, dropout, frozen and trainable BatchNorm."""
    keras.utils.set_random_seed(1)
    strategy = strategy_of(count)
    with strategy.scope():
        model = build_classifier(register(), classes=CLASSES, image_size=64)
        backbones.freeze(model, "tiny", trainable_blocks=2, batch_norm=True)
        model.get_layer("conv1_bn").trainable = False
        trainer = training_model(model, "tiny", pretrained=True)
        adamw = optimizer.averaged_adamw(1e-2, steps=STEPS, weight_decay=0.05)
        if mutation == "clip":
            adamw = keras.optimizers.AdamW.from_config(adamw.get_config())
        trainer.compile(adamw)
        adamw.build(trainer.trainable_variables)
    if mutation == "norm":
        for layer in trainer.layers:
            layer.synchronized = False
    weights = dict.fromkeys(range(CLASSES), 40.0) if mutation == "weights" else CLASS_WEIGHTS
    distributed = distribute_batches(strategy, BATCH, batches)
    step = loop.train_step(
        trainer, weighted_cross_entropy(weights), strategy, distributed.element_spec
    )
    sums: Any = {}
    for _, batch in zip(range(STEPS), distributed, strict=False):
        _, sums = step(batch)
    raw = {v.path: v.numpy() for v in trainer.variables if "seed" not in v.path}
    adamw.finalize_variable_values(trainer.trainable_variables)
    averaged = {f"averaged {v.path}": v.numpy() for v in trainer.trainable_variables}
    return {**raw, **averaged, "loss": np.float32(sums["loss"])}


if __name__ == "__main__":
    out, mutation = sys.argv[1], "".join(sys.argv[2:])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    tf.config.experimental.enable_op_determinism()
    if mutation == "style":
        mixstyle.previous_rows = lambda x: tf.roll(x, 1, axis=0)
    if mutation == "draws":
        replicas.draw_rows = mixstyle.draw_rows = lambda draw, x: draw(tf.shape(x)[0])
    results = {f"{n}: {k}": v for n in (1, 2, 4) for k, v in train(n, mutation).items()}
    np.savez(out, **results)
