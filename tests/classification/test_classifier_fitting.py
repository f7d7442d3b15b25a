"""Tests of fitting a classifier: the head alone, and the class weights."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import tiny_settings

from cxr_tf.config import TrainClassifier


@pytest.mark.usefixtures("quick")
def test_zero_epochs_train_the_head_only(
    undisturbed: TrainClassifier, phantoms: Path, tmp_path: Path
) -> None:
    """A head for three classes on the unchanged backbone of a binary model."""
    import keras

    from cxr_tf.classification import train_classifier
    from cxr_tf.models.backbones import backbone_layers

    source = Path(undisturbed.logs) / "classifier/run/model.keras"
    run = train_classifier.train_classifier(
        tiny_settings(phantoms, tmp_path, weights=str(source), epochs=0, task="three_class")
    )
    before = keras.saving.load_model(source, compile=False)
    after = keras.saving.load_model(run.directory / "model.keras", compile=False)
    assert after.output_shape == (None, 3)
    for layer in backbone_layers(before, "tiny"):
        for old, new in zip(
            layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(old, new)
    metrics = run.metrics
    assert metrics["model"]["best_epoch"] == 0
    assert metrics["history"][0]["train_loss"] is None
    assert {f"recall/{c}" for c in ("normal", "bacterial", "viral")} <= metrics["test"].keys()
    with (run.directory / "predictions-test.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["path", "patient", "label", "normal", "bacterial", "viral", "predicted"]


def test_class_weights_balance_two_classes_fully_and_three_partly() -> None:
    from cxr_tf.classification.fitting import class_weights

    assert class_weights(np.repeat([0, 1], [30, 10])) == pytest.approx({0: 2 / 3, 1: 2.0})
    counts = np.array([10, 40, 90])
    weights = class_weights(np.repeat([0, 1, 2], counts))
    assert [weights[k] / weights[0] for k in range(3)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert np.dot(counts, list(weights.values())) == pytest.approx(counts.sum())
