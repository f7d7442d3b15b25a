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
from cxr_tf.study.report import NAMES
from cxr_tf.study.steps import chosen, first_given

LONGEST_NAME = 60  # of a study: the names of its runs are longer, and folders

QUESTIONS = {"binary": "healthy or pneumonia", "three_class": "healthy, bacterial or viral"}


@dataclass(frozen=True)
class Preset:
    """What a preset settles; None leaves a job its default.

    0 epochs of a task: its classifiers are those of the binary task with a new last layer, a
    logistic regression on their embedding.
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
        weights=dict.fromkeys(NAMES, "none"),
        autoencoder_image_size=128,
        # Two hundred healthy images in batches of 16 are too few steps for it to learn anything.
        autoencoder_batch_size=4,
        autoencoder_epochs=5,
        neighbours_of=("binary",),
        heatmaps=8,
    ),
    "full": Preset(),
}


def resolve(settings: RunStudy) -> RunStudy:
    """Fills in what was left to the preset; UserError for a value that no job would take."""
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
    for task in QUESTIONS:
        check_numbers(training_budget(settings, task))
    if settings.epochs == 0 and "none" in weights.values():
        raise UserError("--epochs 0 trains the head alone, which needs weights for every backbone")
    return settings


def training_budget(settings: RunStudy, task: str) -> TrainingBudget:
    """What every classifier of a task is given."""
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
    """What one classifier is trained with."""
    weights = getattr(settings, f"{backbone}_weights")
    if transfers_from_binary(settings, task):
        weights = str(runs[f"binary-{backbone}"].directory / "model.keras")
    return TrainClassifier(
        **dataclasses.asdict(training_budget(settings, task)),
        backbone=backbone,  # type: ignore[arg-type]
        weights=weights,
    )


def transfers_from_binary(settings: RunStudy, task: str) -> bool:
    """Whether the classifiers of a task are those of the binary one with a new last layer."""
    return PRESETS[settings.preset].epochs.get(task) == 0 and settings.epochs is None


def comparison_settings(settings: RunStudy, task: str, runs: dict[str, Run]) -> CompareBackbones:
    """The comparison of the runs that trained the three."""
    names = [f"{task.replace('_', '-')}-{b}" for b in get_args(BackboneName)]
    return CompareBackbones(
        **dataclasses.asdict(training_budget(settings, task)),
        **{f"{b}_weights": getattr(settings, f"{b}_weights") for b in get_args(BackboneName)},
        runs=tuple(str(runs[name].directory) for name in names),
    )


def neighbours_settings(settings: RunStudy, label: str, runs: dict[str, Run]) -> FitKnn:
    """Nearest neighbours in the embedding of the classifier that a comparison chose."""
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
    """The autoencoder, at its own size: it needs less than classifiers do."""
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
    """Heatmaps of the classifier chosen for healthy or pneumonia."""
    return Explain(
        classifier=chosen(runs["binary"]), count=heatmap_count(settings), **_common(settings)
    )


def served_settings(
    settings: RunStudy, steps: tuple[str, ...], runs: dict[str, Run]
) -> CheckServed:
    """What people will serve: the chosen classifiers, their neighbours, the autoencoder."""
    folders = (
        chosen(runs[s]) if runs[s].directory.parent.name == "compare" else str(runs[s].directory)
        for s in steps
    )
    return CheckServed(runs=tuple(folders), logs=settings.logs)


def _common(settings: RunStudy) -> dict[str, Any]:
    return {k: getattr(settings, k) for k in ("data", "seed", "logs", "skip_unreadable")}


def heatmap_count(settings: RunStudy) -> int:
    """Return the number of images to explain per study."""
    return first_given(PRESETS[settings.preset].heatmaps, Explain(classifier="").count)
