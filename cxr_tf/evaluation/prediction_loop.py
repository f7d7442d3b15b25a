"""Predict many images in batches, and pass each result to a writer."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cxr_tf.config import Predict
from cxr_tf.evaluation.prediction_output import PICTURES, blank, image_predictions
from cxr_tf.serving.prediction.batch_prediction import (
    BatchPredictions,
    predict_in_batches,
    progress,
)
from cxr_tf.serving.prediction.client import PredictFn

log = logging.getLogger(__name__)

# Called for each image with its row, the predictions of its batch, its position in the batch, and
# its own predictions in plain types.
ImageWriter = Callable[[int, BatchPredictions, int, dict[str, Any]], None]


def log_counts(images: int, unreadable: int, output: Path | str | None) -> None:
    """Log how many images were predicted, and where the predictions are."""
    if unreadable:
        log.info("%d of %d images could not be predicted", unreadable, images)
    if output:
        log.info("predictions: %s (%d of %d images)", output, images - unreadable, images)


def predict_images(
    settings: Predict, predict: PredictFn, paths: list[str], write: ImageWriter | None = None
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return {row: predictions} and {row: reason for a failure}; call `write` for each image."""
    predicted: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    batch_size = settings.batch_size or (4 if settings.signature in PICTURES else 32)
    with progress(len(paths)) as show:
        for batch in predict_in_batches(predict, paths, batch_size, settings.on_bad_image):
            reasons |= batch.reasons
            for k, row in enumerate(batch.rows):
                predicted[row] = image_predictions(batch.outputs, k)
                if write:
                    write(row, batch, k, predicted[row])
            show(len(predicted) + len(reasons))
    if reasons:
        if not predicted:
            # Only a prediction shows which columns the table has.
            from cxr_tf.serving.store.warm_up import phantom_file

            predicted[-1] = image_predictions(predict([phantom_file()]), 0)
        predicted |= {row: blank(next(iter(predicted.values()))) for row in reasons}
        predicted.pop(-1, None)
    return predicted, reasons
