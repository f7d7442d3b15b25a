"""Tests of comparing backbones: finished runs, here those of a study, without their data."""

import shutil
from pathlib import Path

import pytest
from tiny_study import BACKBONES, copied, run_tiny_study

from cxr_tf.config import CompareBackbones, RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> RunStudy:
    """A copy of a finished study, which a test may change."""
    finished_study = run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")
    return copied(finished_study, tmp_path / "study")


def test_finished_runs_are_compared_without_their_data(
    settings: RunStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification.compare_backbones import compare_backbones

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
