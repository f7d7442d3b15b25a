"""What a finished training writes down: TensorBoard summary and model card."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.config import TrainAutoencoder
from cxr_tf.data.dataset import ImageDataset


def write_tensorboard_summary(
    writer: tf.summary.SummaryWriter,
    settings: TrainAutoencoder,
    results: dict[str, Any],
    name: str,
) -> None:
    """Final scores as scalars, and the settings for the HParams table."""
    from tensorboard.plugins.hparams import api as hparams

    shown = ("model", "image_size", "epochs", "batch_size", "learning_rate", "augmentation")
    with writer.as_default(step=0):
        hparams.hparams(
            {**{k: getattr(settings, k) for k in shown}, "score": results["model"]["score"]},
            trial_id=name,
        )
        for split in ("val", "test"):
            for metric in ("auroc", "accuracy", "recall", "specificity", "f1"):
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def model_card(
    settings: TrainAutoencoder, data: ImageDataset, results: dict[str, Any]
) -> dict[str, Any]:
    """What travels with the SavedModel: what it is, how it did, what it is not."""
    shown = ("auroc", "auprc", "accuracy", "recall", "specificity", "f1")
    train = data.catalog.rows("train")
    sick = train[data.labels[train] == 1]  # which nothing here has looked at
    seen = data.catalog.take(np.setdiff1d(np.arange(len(data.catalog)), sick))
    return {
        "kind": "autoencoder",
        "network": settings.model,
        "score": results["model"]["score"],
        "image_size": settings.image_size,
        "threshold": results["model"]["threshold"],
        "threshold_rule": results["model"]["threshold_rule"],
        **data.catalog.about(),
        "images": seen.about()["images"],
        "training_digests": seen.training_digests(),
        "seed": settings.seed,
        "metrics": {s: {k: results[s][k] for k in shown} for s in ("val", "test")},
        "ci95": {s: results[s]["ci95"] for s in ("val", "test")},
        "counts": {s: results[s]["counts"] for s in ("val", "test")},
        "warnings": results["warnings"],
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, no medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
