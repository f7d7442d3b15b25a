"""What a finished training writes down: TensorBoard summary and model card."""

import logging
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.config import TrainClassifier
from cxr_tf.data import batches as data_batches
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run
from cxr_tf.scoring import classifier

log = logging.getLogger(__name__)

# Beside the headline metrics, what TensorBoard and the model card show of a split.
GROUP_METRICS = ("recall_against_shortcut/", "worst_group_recall")


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
            groups = [k for k in results[split] if k.startswith(GROUP_METRICS)]
            for metric in (*classifier.HEADLINE, *groups):
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def audit_training_images(
    run: Run, train: ImageDataset, writer: tf.summary.SummaryWriter, settings: TrainClassifier
) -> metrics.ShortcutAudit | None:
    """Log, draw and return the shortcut audit of the training images.

    None where a class has too few patients for it.
    """
    audit = metrics.audit_shortcuts(
        train.images, train.labels, train.catalog.patients, train.classes, seed=settings.seed
    )
    if audit is None:
        return None
    log.info("  %s%s", "warning: " if audit.is_warning else "", audit.summary())
    figure = figures.shortcut_audit(
        audit.by_statistic,
        audit.labels,
        audit.probabilities,
        audit.classes,
        train.images,
        heading=audit.summary(),
    )
    run.write_figure("shortcuts", figure, writer)
    return audit


def _is_on_card(metric: str) -> bool:
    return metric in classifier.HEADLINE or metric.startswith(GROUP_METRICS)


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
        "metrics": {
            s: {k: results[s][k] for k in results[s] if _is_on_card(k)} for s in ("val", "test")
        },
        "metrics_ci95": {
            s: {k: v for k, v in results[s]["ci95"].items() if _is_on_card(k)}
            for s in ("val", "test")
        },
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, no medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
