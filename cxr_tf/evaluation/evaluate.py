"""Evaluate an exported model on a folder of radiographs: scores, predictions, figures.

python scripts/evaluate.py --model saved_models/vgg16-binary --data other_hospital
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.config import Evaluate, check_numbers
from cxr_tf.data.acquisition.audit import log_warnings
from cxr_tf.evaluation.precision_cost import precision_cost
from cxr_tf.runs import Run, open_run, reserve_run, to_run_name
from cxr_tf.scoring.classifier import draw_split, result_line, score, score_subgroups
from cxr_tf.scoring.groups import group_line
from cxr_tf.scoring.selection import open_subset
from cxr_tf.scoring.shifts import score_shifts
from cxr_tf.serving import loading

log = logging.getLogger(__name__)


def evaluate(settings: Evaluate) -> Run:
    """Score the signature `serving_default` of a SavedModel on a folder; return the run.

    With a precision other than float32, also measure its cost in AUROC and its gain in speed on
    validation.

    Raises UserError for a missing model or folder, for labels that the model does not know, and for
    an engine or a precision that is not available.
    """
    check_numbers(settings)
    served = loading.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    settings = replace(settings, name=settings.name or evaluation_name(settings, served))
    reserve_run(settings.logs, "evaluate", settings.name, settings)
    if served.card["kind"] == "autoencoder":
        from cxr_tf.anomaly import evaluate_autoencoder  # needed for this kind only

        return evaluate_autoencoder.evaluate_autoencoder(settings, served)
    part = open_subset(settings, served, served.card["task"], served.classes)
    cost = precision_cost(settings, served) if served.precision != "float32" else {}
    run = open_run(settings.logs, "evaluate", settings.name, settings, part.catalog)
    outputs = served.predict(part.catalog.paths, batch_size=settings.batch_size)
    probabilities = outputs["probabilities"]
    predicted = np.array([part.classes.index(label) for label in outputs["label"]])
    split, threshold = settings.split, served.card.get("threshold", 0.5)
    run.write_predictions(
        split, part.catalog, part.labels, probabilities, predicted, part.classes,
        extra=extra_columns(outputs, part.classes),
    )  # fmt: skip
    scores = score(
        part,
        probabilities,
        predicted,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
        sets=outputs.get("prediction_set"),
    )
    if "is_novel" in outputs:
        scores["novel"] = float(outputs["is_novel"].mean())
        log.info(
            "  novel (unlike the training images): %.1f %% of the images", 100 * scores["novel"]
        )
    subgroups = score_subgroups(
        part,
        probabilities,
        predicted,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )
    writer = run.writer()
    draw_split(run, split, part, probabilities, threshold, writer, scores)

    def scored(outputs: dict[str, np.ndarray]) -> dict[str, float]:
        predicted = np.array([part.classes.index(label) for label in outputs["label"]])
        table = metrics.classification_scores(
            part.labels, outputs["probabilities"], predicted, part.classes
        )
        if part.against is None:
            return table
        return table | metrics.recall_against_shortcut(
            part.labels, predicted, part.against, part.classes
        )

    def recalls(table: dict[str, Any]) -> list[float]:
        return [table[f"recall/{name}"] for name in part.classes]

    shifted = score_shifts(settings, served, part, run, writer, scores, scored, recalls)
    engine = {"name": served.engine_for("serving_default"), "precision": served.precision, **cost}
    model = {"saved_model": str(served.folder), **served.card}
    warnings = [
        *part.catalog.warnings,
        *metrics.prediction_warnings(split, predicted, part.classes),
    ]
    groups = {"subgroups": subgroups} if subgroups else {}
    record = {**shifted, **groups, "model": model, "engine": engine, "warnings": warnings}
    run.write_metrics({split: scores, **record})
    log.info("%s", result_line(split, scores))
    if part.against is not None:
        log.info("%s", group_line(scores))
    log_warnings(warnings)
    log.info("run: %s", run.directory)
    return run


def extra_columns(
    outputs: dict[str, np.ndarray], classes: tuple[str, ...]
) -> dict[str, Sequence[Any]]:
    """Return the columns for prediction set and novelty, if the model has these outputs."""
    columns: dict[str, Sequence[Any]] = {}
    if "prediction_set" in outputs:
        columns["prediction_set"] = [
            " ".join(name for name, inside in zip(classes, row, strict=True) if inside)
            for row in outputs["prediction_set"]
        ]
    if "novelty" in outputs:
        columns["novelty"] = [f"{value:.6g}" for value in outputs["novelty"]]
    return columns


def evaluation_name(settings: Evaluate, served: loading.ServedModel) -> str:
    """Return the default name of an evaluation, from model, data, split, precision and shifts."""
    parts = [served.card["name"], Path(settings.data).resolve().name]
    if settings.split != "test":
        parts.append(settings.split)
    if served.precision != "float32":
        parts.append(served.precision)
    if settings.shifts:
        parts.append("shifts")
    return to_run_name("-".join(parts))
