"""Tests of evaluate.py: refusals before any work, seeds."""

import dataclasses
from pathlib import Path

import pytest
from card_only_model import export_card

from cxr_tf.classification import compare_backbones
from cxr_tf.config import CompareBackbones, Evaluate, TrainClassifier
from cxr_tf.errors import UserError
from cxr_tf.evaluation.evaluate import evaluate, evaluation_name
from cxr_tf.runs import Run
from cxr_tf.training.distribution import Workers


def test_existing_evaluation_is_refused_before_images_are_read(tmp_path: Path) -> None:
    served = export_card(
        tmp_path / "models" / "one", kind="classifier", task="binary", classes=["a", "b"]
    )
    data = tmp_path / "nowhere"
    settings = Evaluate(model=str(served.folder), data=str(data), logs=str(tmp_path / "logs"))
    names = {
        evaluation_name(dataclasses.replace(settings, **changed), served)
        for changed in ({}, {"split": "val"}, {"shifts": True})
    }
    assert names == {"one-nowhere", "one-nowhere-val", "one-nowhere-shifts"}
    with pytest.raises(UserError, match="nowhere"):
        evaluate(settings)
    folder = tmp_path / "logs" / "evaluate" / "one-nowhere"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "metrics.json"):
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match="exists and is finished"):
        evaluate(settings)


def test_seed_of_an_evaluation_changes_its_intervals(finished: TrainClassifier) -> None:
    run = Run(Path(finished.logs) / "classifier" / finished.name)

    def intervals(seed: int) -> dict[str, list[float]]:
        settings = Evaluate(
            model=f"{finished.saved_models}/{finished.name}",
            data=finished.data,
            bootstrap_samples=finished.bootstrap_samples,
            seed=seed,
            name=f"seed-{seed}",
            logs=finished.logs,
        )
        return evaluate(settings).metrics["test"]["ci95"]

    # Of accuracy, which the last digits of a probability do not change.
    measured = run.metrics["test"]["ci95"]["accuracy"]
    assert intervals(0)["accuracy"] == measured != intervals(1)["accuracy"]


def test_comparison_reports_mistakes_before_training(tmp_path: Path) -> None:
    plain = CompareBackbones(
        data=str(tmp_path / "nowhere"),
        name="c",
        resnet50_weights="none",
        vgg16_weights="none",
        logs=str(tmp_path / "logs"),
        saved_models=str(tmp_path / "models"),
    )
    finished = tmp_path / "logs" / "classifier" / "c-alexnet"
    for changed, message in (
        ({"vgg16_weights": str(tmp_path / "none.h5")}, "no such weights file"),
        ({"epochs": 0}, "--weights none needs"),
        ({"trainable_blocks": 6}, "--trainable-blocks for resnet50 must be from 0 to 5, not 6"),
    ):
        with pytest.raises(UserError, match=message):
            compare_backbones.compare_backbones(dataclasses.replace(plain, **changed))
    finished.mkdir(parents=True)
    for name in ("config.json", "metrics.json"):
        (finished / name).write_text("{}")
    with pytest.raises(UserError, match="c-alexnet exists and is finished"):
        compare_backbones.compare_backbones(plain)
    with pytest.raises(UserError, match="nowhere"):
        compare_backbones.compare_backbones(dataclasses.replace(plain, name="d"))


def test_finished_runs_are_compared_by_the_chief_without_the_others(tmp_path: Path) -> None:
    """In a study the others wait for the next training meanwhile, and answer nothing else."""
    settings = CompareBackbones(runs=(str(tmp_path / "nowhere"),), name="c", logs=str(tmp_path))
    # Without a strategy, any message to another worker raises AttributeError.
    chief, other = (Workers(strategy=None, index=index, count=2) for index in (0, 1))
    with pytest.raises(UserError, match="not a run directory"):
        compare_backbones.compare_backbones(settings, chief)
    assert compare_backbones.compare_backbones(settings, other).directory == tmp_path / "compare/c"
