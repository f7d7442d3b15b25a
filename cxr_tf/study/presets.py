"""Presets of a study, and the settings of each of its jobs."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, get_args

from cxr_tf.config import (
    BackboneName,
    CheckServed,
    CompareBackbones,
    Explain,
    FitKnn,
    RunStudy,
    TrainAutoencoder,
    TrainClassifier,
    TrainingBudget,
    check_numbers,
)
from cxr_tf.errors import UserError
from cxr_tf.models import backbones
from cxr_tf.runs import Run, check_name
from cxr_tf.study.steps import BACKBONE_NAMES, TASKS, chosen, first_given

LONGEST_NAME = 60  # of a study; the names of its runs, which become folders, are longer


@dataclass(frozen=True)
class Preset:
    """Settings of a preset; None keeps the default of a job.

    If a task has 0 epochs, its classifiers are those of the binary task with a new last layer,
    which is a logistic regression on their embedding.
    """

    image_size: int | None = None
    batch_size: int | None = None
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    bootstrap_samples: int | None = None
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    autoencoder_image_size: int | None = None
    autoencoder_batch_size: int | None = None
    autoencoder_epochs: int | None = None
    neighbours_of: tuple[str, ...] = ("binary", "three_class")
    heatmaps: int | None = None


PRESETS = {
    "quickstart": Preset(
        image_size=64,
        batch_size=16,
        epochs={"binary": 2, "three_class": 0},
        bootstrap_samples=200,
        weights=dict.fromkeys(BACKBONE_NAMES, "none"),
        autoencoder_image_size=128,
        # Two hundred healthy images in batches of 16 give too few steps to learn anything.
        autoencoder_batch_size=4,
        autoencoder_epochs=5,
        neighbours_of=("binary",),
        heatmaps=8,
    ),
    "full": Preset(),
}


def resolve(settings: RunStudy) -> RunStudy:
    """Fill in the values that the preset determines; raise UserError for invalid ones."""
    preset = PRESETS[settings.preset]
    budget = TrainingBudget()
    weights = {
        f"{b}_weights": getattr(settings, f"{b}_weights")
        or preset.weights.get(b, getattr(CompareBackbones(), f"{b}_weights"))
        for b in get_args(BackboneName)
    }
    settings = replace(
        settings,
        name=settings.name or settings.preset,
        image_size=first_given(settings.image_size, preset.image_size, budget.image_size),
        batch_size=first_given(settings.batch_size, preset.batch_size, budget.batch_size),
        bootstrap_samples=first_given(
            settings.bootstrap_samples, preset.bootstrap_samples, budget.bootstrap_samples
        ),
        autoencoder_epochs=preset.autoencoder_epochs
        if settings.autoencoder_epochs is None
        else settings.autoencoder_epochs,
        **weights,
    )
    check_name(settings.name)
    if len(settings.name) > LONGEST_NAME:
        raise UserError(f"--name is longer than {LONGEST_NAME} characters")
    if settings.image_size < backbones.SMALLEST_SIZE:  # type: ignore[operator]
        raise UserError(f"--image-size must be at least {backbones.SMALLEST_SIZE}")
    check_numbers(settings)
    for task in TASKS:
        check_numbers(training_budget(settings, task))
    missing = ["--" + key.replace("_", "-") for key, value in weights.items() if value == "none"]
    if settings.epochs == 0 and missing:
        raise UserError(
            "--epochs 0 trains the head alone, which needs pretrained weights: give "
            f"{', '.join(missing)}"
        )
    return settings


def training_budget(settings: RunStudy, task: str) -> TrainingBudget:
    """Return the settings that all classifiers of a task share."""
    epochs = PRESETS[settings.preset].epochs.get(task, TrainingBudget().epochs)
    return TrainingBudget(
        data=settings.data,
        task=task,  # type: ignore[arg-type]
        image_size=settings.image_size,  # type: ignore[arg-type]
        batch_size=settings.batch_size,  # type: ignore[arg-type]
        epochs=first_given(settings.epochs, epochs),
        bootstrap_samples=settings.bootstrap_samples,  # type: ignore[arg-type]
        seed=settings.seed,
        logs=settings.logs,
        saved_models=settings.saved_models,
        resume=True,
        allow_leakage=settings.allow_leakage,
        skip_unreadable=settings.skip_unreadable,
    )


def classifier_settings(
    settings: RunStudy, task: str, backbone: str, runs: dict[str, Run]
) -> TrainClassifier:
    """Return the settings that train one classifier."""
    weights = getattr(settings, f"{backbone}_weights")
    if transfers_from_binary(settings, task):
        weights = str(runs[f"binary-{backbone}"].directory / "model.keras")
    return TrainClassifier(
        **dataclasses.asdict(training_budget(settings, task)),
        backbone=backbone,  # type: ignore[arg-type]
        weights=weights,
    )


def transfers_from_binary(settings: RunStudy, task: str) -> bool:
    """Return whether a task reuses the binary classifiers with a new last layer."""
    return PRESETS[settings.preset].epochs.get(task) == 0 and settings.epochs is None


def comparison_settings(settings: RunStudy, task: str, runs: dict[str, Run]) -> CompareBackbones:
    """Return the settings that compare the trained backbones."""
    names = [f"{task.replace('_', '-')}-{b}" for b in get_args(BackboneName)]
    return CompareBackbones(
        **dataclasses.asdict(training_budget(settings, task)),
        **{f"{b}_weights": getattr(settings, f"{b}_weights") for b in get_args(BackboneName)},
        runs=tuple(str(runs[name].directory) for name in names),
    )


def neighbours_settings(settings: RunStudy, label: str, runs: dict[str, Run]) -> FitKnn:
    """Return the settings of nearest neighbours in the selected classifier's embedding."""
    assert settings.batch_size and settings.bootstrap_samples
    return FitKnn(
        classifier=chosen(runs[label]),
        batch_size=settings.batch_size,
        bootstrap_samples=settings.bootstrap_samples,
        resume=True,
        **_common(settings),
        saved_models=settings.saved_models,
        allow_leakage=settings.allow_leakage,
    )


def autoencoder_settings(settings: RunStudy) -> TrainAutoencoder:
    """Return the settings of the autoencoder, which needs smaller images than the classifiers."""
    assert settings.bootstrap_samples
    preset = PRESETS[settings.preset]
    return TrainAutoencoder(
        image_size=first_given(preset.autoencoder_image_size, TrainAutoencoder().image_size),
        batch_size=first_given(preset.autoencoder_batch_size, TrainAutoencoder().batch_size),
        epochs=settings.autoencoder_epochs,
        bootstrap_samples=settings.bootstrap_samples,
        resume=True,
        **_common(settings),
        saved_models=settings.saved_models,
        allow_leakage=settings.allow_leakage,
    )


def heatmaps_settings(settings: RunStudy, runs: dict[str, Run]) -> Explain:
    """Return the settings of the heatmaps of the selected binary classifier."""
    return Explain(
        classifier=chosen(runs["binary"]), count=heatmap_count(settings), **_common(settings)
    )


def served_settings(
    settings: RunStudy, steps: tuple[str, ...], runs: dict[str, Run]
) -> CheckServed:
    """Return the settings that verify the exported models which a user would serve."""
    folders = (
        chosen(runs[s]) if runs[s].directory.parent.name == "compare" else str(runs[s].directory)
        for s in steps
    )
    return CheckServed(runs=tuple(folders), logs=settings.logs)


def _common(settings: RunStudy) -> dict[str, Any]:
    return {k: getattr(settings, k) for k in ("data", "seed", "logs", "skip_unreadable")}


def heatmap_count(settings: RunStudy) -> int:
    """Return the number of images to explain."""
    return first_given(PRESETS[settings.preset].heatmaps, Explain(classifier="").count)
