"""Run by test_classification in a process of its own: one epoch on two virtual CPU devices.

Devices can be split only before TensorFlow has started, so this cannot be a test function.
"""

import sys

import tensorflow as tf
from tiny_backbone import register

from cxr_tf import classification
from cxr_tf.settings import TrainClassifier

if __name__ == "__main__":
    data, out = sys.argv[1:]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    classification.distribution = lambda: strategy
    run = classification.train_and_evaluate(
        TrainClassifier(
            data=data,
            backbone=register(),
            weights="none",
            image_size=64,
            batch_size=8,
            epochs=2,
            precision="float32",
            resamples=10,
            logs=f"{out}/logs",
            saved_models=f"{out}/saved_models",
        )
    )
    print(strategy.num_replicas_in_sync, "replicas", run.metrics()["history"][-1]["val_loss"])
