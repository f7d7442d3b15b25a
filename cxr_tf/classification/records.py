"""What a finished training writes down: TensorBoard summary and model card."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.config import TrainClassifier
from cxr_tf.data import batches as data_batches
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.scoring import classifier


def write_tensorboard_summary(
    writer: tf.summary.SummaryWriter,
    settings: TrainClassifier,
    results: dict[str, Any],
    name: str,
) -> None:
    """Final scores as scalars, and the settings for the HParams table."""
    from tensorboard.plugins.hparams import api as hparams

    shown = (
        *("backbone", "task", "weights", "image_size", "epochs", "batch_size", "augmentation"),
        *("trainable_blocks", "learning_rate", "precision"),
    )
    with writer.as_default(step=0):
        hparams.hparams({k: getattr(settings, k) for k in shown}, trial_id=name)
        for split in ("val", "test"):
            for metric in classifier.HEADLINE:
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def images_per_second(function: tf.types.experimental.GenericFunction, images: np.ndarray) -> float:
    """Inference speed on up to 64 images in batches of 32, after a warm-up."""
    batches = list(data_batches.evaluation_batches(images[:64], batch_size=32))
    function(batches[0])
    started = time.perf_counter()
    count = sum(len(np.asarray(function(b))) for b in batches)
    return count / (time.perf_counter() - started)


def model_card(
    settings: TrainClassifier, data: ImageDataset, results: dict[str, Any]
) -> dict[str, Any]:
    """What travels with the SavedModel: what it is, how it did, what it is not."""
    return {
        "kind": "classifier",
        "task": settings.task,
        "classes": list(data.classes),
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "threshold": results["model"]["threshold"],
        "temperature": results["model"]["temperature"],
        **data.catalog.about(),
        "training_digests": data.catalog.training_digests(),
        "seed": settings.seed,
        "metrics": {s: {k: results[s][k] for k in classifier.HEADLINE} for s in ("val", "test")},
        "ci95": {s: results[s]["ci95"] for s in ("val", "test")},
        "counts": {s: results[s]["counts"] for s in ("val", "test")},
        "warnings": results["warnings"],
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, no medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
