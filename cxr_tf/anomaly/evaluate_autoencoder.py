"""Evaluate an exported autoencoder on a folder of radiographs."""

import logging
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.anomaly.drawing import draw_split, examples
from cxr_tf.anomaly.scoring import (
    result_line,
    score_by_subgroup,
    score_split,
    write_predictions,
)
from cxr_tf.config import Evaluate
from cxr_tf.data import catalog
from cxr_tf.data.acquisition.audit import log_warnings
from cxr_tf.runs import Run, open_run
from cxr_tf.scoring import selection, shifts
from cxr_tf.serving import loading
from cxr_tf.serving.prediction.batch_prediction import concatenated

log = logging.getLogger(__name__)


def evaluate_autoencoder(settings: Evaluate, served: loading.ServedModel) -> Run:
    """Score an exported autoencoder on a folder, with the exported signatures and threshold."""
    part = selection.open_subset(settings, served, "binary", catalog.task_classes("binary"))
    run = open_run(settings.logs, "evaluate", settings.name, settings, part.catalog)
    paths, split = part.catalog.paths, settings.split
    detect, explain = served.file_predictor("serving_default"), served.file_predictor("explain")
    outputs = concatenated(detect, paths, settings.batch_size)
    threshold = float(outputs["threshold"][0])
    scores = score_split(
        part,
        outputs["score"],
        threshold,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )
    write_predictions(run, split, part, outputs["score"], threshold, outputs["percentile"])
    shown = examples(part.labels == 1, outputs["score"], threshold)
    explained = {kind: explain([paths[i] for i in rows]) for kind, rows in shown.items()}
    writer = run.writer()
    draw_split(run, split, part, outputs["score"], threshold, shown, explained, writer)

    subgroups = score_by_subgroup(
        part,
        outputs["score"],
        threshold,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )

    def table_of(predictions: dict[str, np.ndarray]) -> dict[str, float]:
        return metrics.detection_scores(part.labels == 1, predictions["score"], threshold)

    def recalls(table: dict[str, Any]) -> list[float]:
        return [table["specificity"], table["recall"]]

    shifted = shifts.score_shifts(settings, served, part, run, writer, scores, table_of, recalls)
    model = {"saved_model": str(served.folder), **served.card}
    predicted = (outputs["score"] >= threshold).astype(int)
    warnings = [
        *part.catalog.warnings,
        *metrics.prediction_warnings(split, predicted, part.classes),
    ]
    groups = {"subgroups": subgroups} if subgroups else {}
    record = {**shifted, **groups, "model": model, "warnings": warnings}
    run.write_metrics({split: scores, **record})
    log.info("%s", result_line(split, scores))
    log_warnings(warnings)
    log.info("run: %s", run.directory)
    return run
