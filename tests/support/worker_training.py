"""Train as one of several workers; run by test_workers in separate processes.

    TF_CONFIG=... python tests/support/worker_training.py --data DATA --logs OUT/logs ...

The flags are those of train_classifier.py, but the backbone is the tiny one; with `--name both`, an
autoencoder is trained too. Without TF_CONFIG, the process is the only worker. OUT is a separate
folder for each worker, as on separate machines.
"""

import sys

from tiny_backbone import register

from cxr_tf import cli
from cxr_tf.config import TrainAutoencoder, TrainClassifier


def work(settings: TrainClassifier) -> None:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder
    from cxr_tf.classification.train_classifier import train_classifier

    train_classifier(settings)
    if settings.name == "both":
        train_autoencoder(
            TrainAutoencoder(
                data=settings.data, model="plain", image_size=64, batch_size=6, epochs=2,
                bootstrap_samples=5, logs=settings.logs, saved_models=settings.saved_models,
            )
        )  # fmt: skip


if __name__ == "__main__":
    sys.argv[1:] = ["--backbone", "vgg16", *sys.argv[1:]]
    import dataclasses

    cli.run(TrainClassifier, lambda s: work(dataclasses.replace(s, backbone=register())))
