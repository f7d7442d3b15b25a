"""Tests of running a study: every step of the first run, none of the second, and mistakes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_folder import Page, directory, page_of, runs_of
from tiny_study import ALL_DONE, TRAINED

from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


def test_every_job_ran_and_exported(finished_study: RunStudy) -> None:
    runs = runs_of(finished_study)
    assert set(runs) == ALL_DONE
    for run in runs.values():
        assert Run(Path(finished_study.logs) / run).finished
    exported = sorted(p.parent.name for p in Path(finished_study.saved_models).glob("*/1"))
    assert exported == sorted(
        [f"tiny-{t}" for t in TRAINED] + ["tiny-binary-knn", "tiny-autoencoder"]
    )
    # Neighbours and heatmaps are of the classifier that validation chose.
    chosen = Run(Path(finished_study.logs) / runs["binary"]).metrics["chosen"]
    for step in ("binary-knn", "heatmaps"):
        config = Run(Path(finished_study.logs) / runs[step]).config
        assert Path(config["settings"]["classifier"]).name == chosen


def test_exported_models_are_verified(finished_study: RunStudy) -> None:
    checked = Run(Path(finished_study.logs) / "served/tiny-served").metrics
    assert checked["agreed"] is True
    assert [m["kind"] for m in checked["models"]] == ["classifier", "knn", "autoencoder"]
    page = " ".join(Page(page_of(finished_study)).words.split())
    assert "The exported models reproduce the evaluated predictions." in page
    for model in checked["models"]:
        run = Run(Path(model["run"]))
        assert model["images"] == run.metrics["test"]["images"] > 10
        assert model["equal"] == model["labels_equal"] == model["images"]
        assert model["largest_difference"] < 1e-4
        assert f"{model['saved_model']}{model['equal']} of {model['images']}" in page


def test_repeated_study_only_rewrites_the_report(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    before = runs_of(settings)
    seconds = json.loads((directory(settings) / "metrics.json").read_text())["steps"]
    run_study(settings)
    assert called == ["report"] and runs_of(settings) == before
    assert json.loads((directory(settings) / "metrics.json").read_text())["steps"] == seconds


def mistakes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "no such folder", {"data": "nowhere"}
    yield "letters, digits", {"name": "a/b"}
    yield "longer than", {"name": "a" * 61}
    yield "at least 64", {"image_size": 32}
    yield "--autoencoder-epochs", {"autoencoder_epochs": 0}
    yield "--batch-size", {"batch_size": 0}
    yield "head alone", {"epochs": 0}


@pytest.mark.parametrize(
    "message, changed", mistakes(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_study_user_error_writes_nothing(
    settings: RunStudy, message: str, changed: dict[str, Any]
) -> None:
    from cxr_tf.study.run_study import run_study

    before = sorted(Path(settings.logs).parent.rglob("*"))
    with pytest.raises(UserError, match=message):
        run_study(dataclasses.replace(settings, **{"name": "other"} | changed))
    assert sorted(Path(settings.logs).parent.rglob("*")) == before
