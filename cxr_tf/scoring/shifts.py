"""Scores of an exported model under acquisition shifts."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import figures
from cxr_tf.config import Evaluate
from cxr_tf.data.acquisition_shifts import SHIFTS
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run
from cxr_tf.serving import loading

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
    """With `--shifts` {"shifts": table of each}, and their figure beside `scores`; else empty.

    scored: from answers to a table; recalls: of a table, one for each of the part's classes.
    """
    if not settings.shifts:
        return {}
    shifted = under_shifts(served, part.images, scored, batch_size=settings.batch_size)
    drawn = {
        name: dict(zip(part.classes, recalls(table), strict=True))
        for name, table in {"as they are": scores, **shifted}.items()
    }
    run.write_figure(f"shifts-{settings.split}", figures.shifts(drawn, part.classes), writer)
    return {"shifts": shifted}


def under_shifts(
    served: loading.ServedModel,
    images: np.ndarray,
    scored: Callable[[dict[str, np.ndarray]], dict[str, float]],
    *,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """What `scored` makes of a model's answers under each shift of `data.shifts`; logged.

    images: uint8 [N, S, S, 1], decoded at the model's size. Each shifted one is asked about as the
    PNG that it would be.
    """
    ask = served.predictor("serving_default")
    width = max(map(len, SHIFTS))
    found = {}
    log.info("  %s  AUROC  balanced accuracy  recall  specificity", "under a shift".ljust(width))
    for name, shift in SHIFTS.items():
        parts = []
        for start in range(0, len(images), batch_size):
            shifted = shift(images[start : start + batch_size])
            parts.append(ask([tf.io.encode_png(image).numpy() for image in shifted]))
        answers = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        found[name] = {key: float(value) for key, value in scored(answers).items()}
        told = [found[name][k] for k in ("auroc", "balanced_accuracy", "recall", "specificity")]
        log.info("  %s  %.3f  %.3f              %.3f   %.3f", name.ljust(width), *told)
    return found
