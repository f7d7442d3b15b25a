"""Scores of an exported model under acquisition shifts."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import console, figures
from cxr_tf.config import Evaluate
from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run
from cxr_tf.serving import loading
from cxr_tf.serving.prediction.batch_prediction import concatenated

log = logging.getLogger(__name__)


def score_shifts(
    settings: Evaluate,
    served: loading.ServedModel,
    part: ImageDataset,
    run: Run,
    writer: tf.summary.SummaryWriter,
    scores: dict[str, Any],
    scored: Callable[[dict[str, np.ndarray]], dict[str, float]],
    recalls: Callable[[dict[str, Any]], Sequence[float]],
) -> dict[str, Any]:
    """Return {"shifts": {name: scores}}, and draw them with `scores`; empty without `--shifts`.

    scored: a function from predictions to scores; recalls: from scores to the recall of each class.
    """
    if not settings.shifts:
        return {}
    shifted = under_shifts(served, part.images, scored, batch_size=settings.batch_size)
    recall_by_shift = {
        name: dict(zip(part.classes, recalls(table), strict=True))
        for name, table in {"unchanged": scores, **shifted}.items()
    }
    run.write_figure(
        f"shifts-{settings.split}", figures.shifts(recall_by_shift, part.classes), writer
    )
    return {"shifts": shifted}


def under_shifts(
    served: loading.ServedModel,
    images: np.ndarray,
    scored: Callable[[dict[str, np.ndarray]], dict[str, float]],
    *,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Score the predictions under each shift of `data.acquisition.shifts`, and log a table.

    images: uint8 [N, S, S, 1], decoded at the model's size. Shifted images are sent as PNG files.
    """
    predict = served.predictor("serving_default")
    results: dict[str, dict[str, float]] = {}
    for name, shift in SHIFTS.items():

        def predict_shifted(
            batch: np.ndarray, shift: Callable[[np.ndarray], np.ndarray] = shift
        ) -> dict[str, np.ndarray]:
            return predict([tf.io.encode_png(image).numpy() for image in shift(batch)])

        outputs = concatenated(predict_shifted, images, batch_size)
        results[name] = {key: float(value) for key, value in scored(outputs).items()}
    shown = ("auroc", "balanced_accuracy", "recall", "specificity")
    rows = [[name, *(f"{scores[k]:.3f}" for k in shown)] for name, scores in results.items()]
    header = ["acquisition shift", "AUROC", "balanced accuracy", *shown[2:]]
    log.info("%s", console.table(header, rows, indent=2))
    return results
