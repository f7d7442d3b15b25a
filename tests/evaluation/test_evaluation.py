"""Tests of evaluate.py: early refusals, and the seed of the intervals."""

import dataclasses
from pathlib import Path

import pytest
from card_only_model import export_card

from cxr_tf.config import Evaluate, TrainClassifier
from cxr_tf.errors import UserError
from cxr_tf.evaluation.evaluate import evaluate, evaluation_name
from cxr_tf.runs import Run


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
