"""Tests of the selection of radiographs to explain."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from classifier_run import write_run

from cxr_tf.config import Explain
from cxr_tf.data.loading import open_catalog
from cxr_tf.explain import inputs


def test_draws_are_balanced_over_classes_and_findings(classifier: Path) -> None:
    findings = ["normal"] * 40 + ["bacterial"] * 15 + ["viral"] * 3
    labels = np.array([0] * 40 + [1] * 18)

    def drawn(count: int, seed: int = 0) -> list[int]:
        return inputs.draw_rows(
            labels, findings, Explain(classifier="", count=count, seed=seed)
        ).tolist()

    rows = drawn(12)
    assert [findings[k] for k in rows] == ["normal"] * 6 + ["bacterial"] * 3 + ["viral"] * 3
    assert len(drawn(50)) == 50 == len(set(drawn(50)))  # although one finding runs out
    assert drawn(0) == list(range(58)) == drawn(99)
    assert drawn(12) == rows != drawn(12, seed=1)


def test_training_folder_without_splits_keeps_the_splits_used_in_training(
    classifier: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    unsplit = tmp_path / "unsplit"
    for path in phantoms.glob("t*/*/*.png"):
        (unsplit / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, unsplit / path.parent.name)
    model = keras.saving.load_model(classifier / "model.keras", compile=False)
    write_run(tmp_path / "run", model, str(unsplit))
    shown = inputs.load_radiographs(
        Explain(classifier="", data=str(unsplit), count=100),
        inputs.open_classifier(str(tmp_path / "run")),
    )
    assert "may be among" not in caplog.text
    trained_on = open_catalog(str(unsplit))
    expected = trained_on.take(trained_on.rows("test")).paths
    assert sorted(shown.catalog.paths) == sorted(expected)


def test_data_that_differ_from_the_training_data_are_noted(
    classifier: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    loaded = inputs.open_classifier(str(classifier))
    inputs.load_radiographs(Explain(classifier="", data=str(phantoms), count=2), loaded)
    assert "may be among" not in caplog.text
    changed = tmp_path / "phantoms"
    shutil.copytree(phantoms, changed)
    next(changed.glob("train/*/*.png")).unlink()
    inputs.load_radiographs(Explain(classifier="", data=str(changed), count=2), loaded)
    assert "test images here may be among" in caplog.text
