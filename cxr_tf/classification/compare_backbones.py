"""Train the backbones with the same settings, and select one on the validation set.

python scripts/compare_backbones.py --data chest_xray --task binary --image-size 144
python scripts/compare_backbones.py --runs logs/classifier/a logs/classifier/b --name a-b
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tensorflow as tf

from cxr_tf import console, figures, metrics
from cxr_tf.classification.train_classifier import check_settings, load_data, train_classifier
from cxr_tf.config import (
    BackboneName,
    CompareBackbones,
    TrainClassifier,
    TrainingBudget,
    check_numbers,
)
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv
from cxr_tf.models.weights import check_weights
from cxr_tf.runs import Run, check_name, open_finished_run, open_run, reserve_run
from cxr_tf.scoring.classifier import HEADLINE
from cxr_tf.scoring.predictions import check_same_rows, paired_tests, read_predictions
from cxr_tf.training.distribution import Workers, connect

log = logging.getLogger(__name__)


# Settings of the data, taken from the first run: `_check_same` compares the data themselves.
OF_DATA = ("data", "task", "positive", "seed")

# Settings of a comparison that do not affect training.
NOT_OF_TRAINING = {
    *("name", "logs", "saved_models", "resume", "bootstrap_samples"),
    *("allow_leakage", "skip_unreadable", "worker_timeout"),
}


def compare_backbones(settings: CompareBackbones, workers: Workers | None = None) -> Run:
    """Train the models (or read finished runs), compare them, and return the comparison's run.

    The model is chosen by the mean loss on the validation images and their perturbed copy, never on
    the test set. With several workers, all of them train; the chief compares the models and writes
    the results.
    """
    workers = workers or connect(settings.worker_timeout)
    if settings.runs:  # nothing to train, so the workers share nothing
        if not workers.is_chief:
            return Run(Path(settings.logs) / "compare" / settings.name)
        return _compare(settings, workers)
    with workers.failing_together():
        workers.agree_on_settings("compare_backbones", settings)
        run = _compare(settings, workers)
        workers.exchange()  # the others wait here until the chief has finished
    return run


def _compare(settings: CompareBackbones, workers: Workers) -> Run:
    if settings.runs:
        trained = [open_finished_run(folder, "classifier") for folder in settings.runs]
        name = settings.name or "-vs-".join(r.directory.name for r in trained)
        check_name(name)
        check_numbers(settings)
        settings = as_trained(settings, [r.config["settings"] for r in trained])
    else:
        name = settings.name or f"backbones-{settings.task}".replace("_", "-")
        if workers.is_chief:
            reserve_run(settings.logs, "compare", name, settings)
        planned = trainings(settings, name)
        for training in planned:  # report mistakes before anything is trained
            check_settings(training, workers)
            check_weights(training.backbone, training.weights)
        data = load_data(settings)
        trained = [train_classifier(training, data) for training in planned]
        if not workers.is_chief:
            return Run(Path(settings.logs) / "compare" / name)
    _check_same(trained)

    results = {r.directory.name: r.metrics for r in trained}
    chosen = min(results, key=lambda n: results[n]["model"]["selection_loss"])
    predictions = {r.directory.name: read_predictions(r, "test") for r in trained}
    check_same_rows(predictions)
    task = results[chosen]["model"]["task"]
    tests = {
        other: paired_tests(
            predictions[chosen], predictions[other], bootstrap_samples=settings.bootstrap_samples
        )
        for other in results
        if other != chosen
    }
    run = open_run(settings.logs, "compare", name, settings, trained[0])
    if run.finished:
        log.info("%s is already finished", run.directory)
    else:
        _write(run, results, chosen, tests)
    log.info("%s", table(results, chosen, tests))
    log.info(
        "%s, %s; chosen on validation: %s\ncomparison: %s",
        *(task, " / ".join(results[chosen]["model"]["classes"]), chosen, run.directory),
    )
    return run


def trainings(settings: CompareBackbones, name: str) -> list[TrainClassifier]:
    """Return the settings of each training run: the same budget for every backbone."""
    budget = {f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainingBudget)}
    return [
        dataclasses.replace(
            TrainClassifier(**budget),
            backbone=backbone,
            weights=getattr(settings, f"{backbone}_weights"),
            name=f"{name}-{backbone}",
        )
        for backbone in get_args(BackboneName)
    ]


def as_trained(settings: CompareBackbones, of_runs: Sequence[dict[str, Any]]) -> CompareBackbones:
    """Return the settings with the values of finished runs; None where the runs differ.

    Raises UserError if a training flag contradicts the runs.
    """
    of_training = {f.name for f in dataclasses.fields(TrainingBudget)} - NOT_OF_TRAINING
    shared: dict[str, Any] = {}
    for key in sorted(of_training):
        values, given = [run.get(key) for run in of_runs], getattr(settings, key)
        # The folder may have moved; `_check_same` compares the data.
        if key != "data" and given not in (getattr(CompareBackbones(), key), *values):
            flag = "--" + key.replace("_", "-")
            raise UserError(
                f"{flag} {given} is for training, but the models of --runs are already trained: "
                "leave it out"
            )
        shared[key] = values[0] if key in OF_DATA or len(set(values)) == 1 else None
    for backbone in get_args(BackboneName):
        values = [run["weights"] for run in of_runs if run["backbone"] == backbone]
        shared[f"{backbone}_weights"] = values[0] if len(set(values)) == 1 else None
    return dataclasses.replace(settings, **shared)


def table(results: dict[str, Any], chosen: str, tests: dict[str, Any]) -> str:
    """Format the comparison for the terminal."""
    header = ["test", "AUROC", "accuracy", "recall", "spec.", "F1", "val. loss", "images/s",
              "M params", "seconds"]  # fmt: skip
    rows = []
    for name, result in results.items():
        test, model = result["test"], result["model"]
        rows.append([
            name + (" *" if name == chosen else ""),
            *(metrics.with_interval(test, metric) for metric in ("auroc", "accuracy")),
            *(f"{test[metric]:.3f}" for metric in ("recall", "specificity", "f1")),
            f"{model['selection_loss']:.3f}",
            f"{model['images_per_second']:.0f}",
            f"{model['parameters'] / 1e6:.1f}",
            f"{model['train_seconds']:.0f}",
        ])  # fmt: skip
    lines = ["\n" + console.table(header, rows)]
    for other, test in tests.items():
        low, high = test["auroc_difference_ci95"]
        lines.append(
            f"{chosen} versus {other}: AUROC {test['auroc_difference']:+.3f} "
            f"({low:+.3f} to {high:+.3f}), DeLong p = {test['delong_p']:.2g}, "
            f"McNemar p = {test['mcnemar_p']:.2g}"
        )
    return "\n".join(lines)


def _write(run: Run, results: dict[str, Any], chosen: str, tests: dict[str, Any]) -> None:
    writer = run.writer()
    names, tables = list(results), [r["test"] for r in results.values()]
    figure = figures.comparison(names, tables, ("auroc", "accuracy", "recall", "f1"), chosen)
    run.write_figure("comparison", figure, writer)
    with writer.as_default(step=0):
        tf.summary.text("comparison", "```\n" + table(results, chosen, tests) + "\n```")
    write_csv(
        run.directory / "comparison.csv",
        ["model", "chosen", *(f"{m}{end}" for m in HEADLINE for end in ("", "_low", "_high"))],
        [
            [
                name,
                int(name == chosen),
                *(v for m in HEADLINE for v in (t[m], *t["ci95"].get(m, ("", "")))),
            ]
            for name, t in zip(names, tables, strict=True)
        ],
    )
    run.write_metrics(
        {
            "chosen": chosen,
            "val": results[chosen]["val"],
            "test": results[chosen]["test"],
            "models": {n: {k: r[k] for k in ("val", "test", "model")} for n, r in results.items()},
            "paired_tests": tests,
        }
    )


def _check_same(trained: list[Run]) -> None:
    first = trained[0]
    names = [run.directory.resolve().name for run in trained]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"two of the runs are called {min(duplicates)}: give different runs, or rename one of "
            "the folders"
        )
    for run in trained[1:]:
        if run.config["data_fingerprint"] != first.config["data_fingerprint"]:
            raise UserError(
                f"{run.directory} and {first.directory} cannot be compared: they used different "
                "data or splits"
            )
        if run.metrics["model"]["task"] != first.metrics["model"]["task"]:
            raise UserError(
                f"{run.directory} and {first.directory} cannot be compared: they have different "
                "tasks"
            )
