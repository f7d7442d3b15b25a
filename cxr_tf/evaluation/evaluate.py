"""Scores, predictions and figures of a classifier on a split; any SavedModel of ours on a folder.

python scripts/evaluate.py --model saved_models/vgg16-binary --data other_hospital
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.config import Evaluate, check_numbers
from cxr_tf.evaluation.precision_cost import precision_cost
from cxr_tf.runs import Run, open_run, reserve_run, to_run_name
from cxr_tf.scoring.classifier import draw_split, result_line, score
from cxr_tf.scoring.groups import group_line
from cxr_tf.scoring.selection import open_subset
from cxr_tf.scoring.shifts import score_shifts
from cxr_tf.serving import loading

log = logging.getLogger(__name__)


def evaluate(settings: Evaluate) -> Run:
    """Scores a SavedModel on a folder, by its own `serving_default`; returns the finished run.

    With a precision other than float32 it also measures, on validation, what that costs and gains.

    Raises UserError for a model or a folder that is none, for labels the model does not know, and
    for an engine or a precision that cannot be had.
    """
    check_numbers(settings)
    served = loading.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    settings = replace(settings, name=settings.name or evaluation_name(settings, served))
    reserve_run(settings.logs, "evaluate", settings.name, settings)
    if served.card["kind"] == "autoencoder":
        from cxr_tf.anomaly import evaluate_autoencoder  # which imports this module

        return evaluate_autoencoder.evaluate_autoencoder(settings, served)
    part = open_subset(settings, served, served.card["task"], served.classes)
    cost = precision_cost(settings, served) if served.precision != "float32" else {}
    run = open_run(settings.logs, "evaluate", settings.name, settings, part.catalog)
    probabilities, predicted = loading.predict_files(
        served, part.catalog.paths, batch_size=settings.batch_size
    )
    split, threshold = settings.split, served.card.get("threshold", 0.5)
    run.write_predictions(split, part.catalog, part.labels, probabilities, predicted, part.classes)
    scores = score(
        part,
        probabilities,
        predicted,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )
    writer = run.writer()
    draw_split(run, split, part, probabilities, threshold, writer, scores)

    def scored(answers: dict[str, np.ndarray]) -> dict[str, float]:
        called = np.array([part.classes.index(label) for label in answers["label"]])
        table = metrics.classification_scores(
            part.labels, answers["probabilities"], called, part.classes
        )
        if part.against is None:
            return table
        return table | metrics.recall_against_shortcut(
            part.labels, called, part.against, part.classes
        )

    def recalls(table: dict[str, Any]) -> list[float]:
        return [table[f"recall/{kind}"] for kind in part.classes]

    shifted = score_shifts(settings, served, part, run, writer, scores, scored, recalls)
    ran_on = {"name": served.engine_for("serving_default"), "precision": served.precision, **cost}
    model = {"saved_model": str(served.folder), **served.card}
    run.write_metrics({split: scores, **shifted, "model": model, "engine": ran_on})
    log.info(result_line(split, scores))
    if part.against is not None:
        log.info(group_line(scores))
    log.info("run: %s", run.directory)
    return run


def evaluation_name(settings: Evaluate, served: loading.ServedModel) -> str:
    """A name for an evaluation that has none: model, data, and what else it was asked for."""
    parts = [served.card["name"], Path(settings.data).resolve().name]
    if settings.split != "test":
        parts.append(settings.split)
    if served.precision != "float32":
        parts.append(served.precision)
    if settings.shifts:
        parts.append("shifts")
    return to_run_name("-".join(parts))
