"""Train on two virtual CPU devices; run by test_train_classifier in a separate process.

First from scratch, with trainable BatchNorm, then from the trained weights, with frozen BatchNorm
and MixStyle. Virtual devices must be configured before TensorFlow starts.
"""

import sys
from dataclasses import replace

import tensorflow as tf
from tiny_backbone import register

from cxr_tf.classification import train_classifier
from cxr_tf.config import TrainClassifier
from cxr_tf.training import distribution

if __name__ == "__main__":
    data, out = sys.argv[1:]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    distribution._connected.append(distribution.Workers(strategy))
    scratch = TrainClassifier(
        data=data,
        backbone=register(),
        weights="none",
        image_size=64,
        batch_size=8,
        epochs=2,
        precision="float32",
        bootstrap_samples=10,
        logs=f"{out}/logs",
        saved_models=f"{out}/saved_models",
    )
    run = train_classifier.train_classifier(scratch)
    onwards = replace(scratch, weights=str(run.directory / "model.keras"), epochs=1, name="onwards")
    again = train_classifier.train_classifier(onwards)
    # The last epoch from scratch; then the head alone, and an epoch of fine-tuning.
    entries = [run.metrics["history"][-1], *again.metrics["history"]]
    print(strategy.num_replicas_in_sync, "replicas", *(e["val_loss"] for e in entries))
