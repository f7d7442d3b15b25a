"""Run a study with several workers: the chief runs all steps, and the others help to train."""

from dataclasses import asdict, replace
from typing import Any

import keras

from cxr_tf.anomaly.train_autoencoder import train_autoencoder
from cxr_tf.classification.train_classifier import train_classifier
from cxr_tf.config import RunStudy, TrainAutoencoder, TrainClassifier
from cxr_tf.study.plan import Images
from cxr_tf.training.distribution import Workers

# Jobs of a study in which all workers take part.
TRAININGS = ("classifier", "autoencoder")


def announce(workers: Workers, task: str, settings: Any = None, run_name: str = "") -> None:
    """Send the chief's next task to the workers: `images`, a job of TRAININGS, or `end`."""
    workers.broadcast([task, asdict(settings) if settings else {}, run_name])


def follow(settings: RunStudy, images: Images, workers: Workers) -> None:
    """Take part in the tasks that the chief announces, until its study ends."""
    while True:
        task, values, run_name = workers.broadcast(None)
        own = {"name": run_name, "data": settings.data, "logs": settings.logs}
        if task == "end":
            return
        if task == "images":
            images.load()
        elif task == "classifier":
            training = TrainClassifier(**{**values, **own})
            train_classifier(training, images.of_task(training.task))
        else:
            train_autoencoder(replace(TrainAutoencoder(**values), **own))
        keras.backend.clear_session()
