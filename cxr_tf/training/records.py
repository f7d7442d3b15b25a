"""Records of a finished training run: final scores in TensorBoard, and the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from cxr_tf.data.catalog import Catalog


def write_tensorboard_summary(
    writer: tf.summary.SummaryWriter,
    name: str,
    hyperparameters: Mapping[str, Any],
    results: Mapping[str, Any],
    metrics: Sequence[str],
) -> None:
    """Write the final scores as scalars, and the hyperparameters as a row of the HParams table.

    results: {"val": table, "test": table}; metrics: the names of the scores to write.
    """
    from tensorboard.plugins.hparams import api as hparams

    with writer.as_default(step=0):
        hparams.hparams(dict(hyperparameters), trial_id=name)
        for split in ("val", "test"):
            for metric in metrics:
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def model_card(
    kind: str,
    catalog: Catalog,
    results: Mapping[str, Any],
    metrics: Sequence[str],
    *,
    image_size: int,
    seed: int,
    **specific: Any,
) -> dict[str, Any]:
    """Return the card that is exported with a model and records its training, scores and limits.

    catalog: all images of the run; specific: entries for this kind of model, which are added to the
    common entries or replace them.
    """
    return {
        "kind": kind,
        "image_size": image_size,
        "threshold": results["model"]["threshold"],
        **catalog.about(),
        "training_digests": catalog.training_digests(),
        "seed": seed,
        "metrics": {s: {k: results[s][k] for k in metrics} for s in ("val", "test")},
        "ci95": {s: results[s]["ci95"] for s in ("val", "test")},
        "counts": {s: results[s]["counts"] for s in ("val", "test")},
        "warnings": results["warnings"],
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, not a medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        **specific,
    }
