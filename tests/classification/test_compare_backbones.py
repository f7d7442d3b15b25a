"""compare_backbones: mistakes before training, finished runs without their data, workers."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from tiny_study import BACKBONES, copied, run_tiny_study

from cxr_tf.classification.compare_backbones import compare_backbones
from cxr_tf.config import CompareBackbones, RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run
from cxr_tf.training.distribution import Workers


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> RunStudy:
    """A copy of a finished study, which a test may change."""
    finished_study = run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")
    return copied(finished_study, tmp_path / "study")


def test_finished_runs_are_compared_without_their_data(
    settings: RunStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(settings.data)
    monkeypatch.chdir(tmp_path)
    trained = tuple(f"{settings.logs}/classifier/tiny-binary-{b}" for b in BACKBONES)
    before = Run(Path(settings.logs) / "compare/tiny-binary")
    after = compare_backbones(
        CompareBackbones(runs=trained, name="later", bootstrap_samples=20, logs=settings.logs)
    )
    assert after.metrics["chosen"] == before.metrics["chosen"]
    for key in ("data_fingerprint", "data_is_phantom", "images"):
        assert after.config[key] == before.config[key]
    assert after.config["settings"]["data"] == before.config["settings"]["data"]
    assert not (tmp_path / "data").exists()  # no phantoms in place of missing data
    # The record says how they were trained, and flags of training that say otherwise are refused.
    recorded = after.config["settings"]
    assert (recorded["epochs"], recorded["image_size"]) == (1, 64)
    assert recorded["vgg16_weights"] == "none"
    with pytest.raises(UserError, match="--epochs 7 is for training"):
        compare_backbones(
            CompareBackbones(runs=trained, name="other", epochs=7, logs=settings.logs)
        )


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
            compare_backbones(dataclasses.replace(plain, **changed))
    finished.mkdir(parents=True)
    for name in ("config.json", "metrics.json"):
        (finished / name).write_text("{}")
    with pytest.raises(UserError, match="c-alexnet exists and is finished"):
        compare_backbones(plain)
    with pytest.raises(UserError, match="nowhere"):
        compare_backbones(dataclasses.replace(plain, name="d"))


def test_the_chief_compares_finished_runs_alone(tmp_path: Path) -> None:
    """In a study the others meanwhile wait for the next training, and respond to nothing else."""
    settings = CompareBackbones(runs=(str(tmp_path / "nowhere"),), name="c", logs=str(tmp_path))
    # Without a strategy, any message to another worker raises AttributeError.
    chief, other = (Workers(strategy=None, index=index, count=2) for index in (0, 1))
    with pytest.raises(UserError, match="not a run directory"):
        compare_backbones(settings, chief)
    assert compare_backbones(settings, other).directory == tmp_path / "compare/c"
