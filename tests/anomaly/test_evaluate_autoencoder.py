"""Tests of scoring an exported autoencoder on a folder."""

import dataclasses
import json
from pathlib import Path

import pytest

from cxr_tf.config import TrainAutoencoder


def test_evaluating_the_export_reproduces_the_metrics(
    chests: Path, finished: TrainAutoencoder, tmp_path: Path
) -> None:
    import keras
    from sklearn.metrics import roc_auc_score

    from cxr_tf.anomaly import perturbed_copies, train_autoencoder
    from cxr_tf.config import Evaluate
    from cxr_tf.data.acquisition import shifts
    from cxr_tf.evaluation.evaluate import evaluate

    model = str(Path(finished.saved_models) / "run")
    settings = Evaluate(
        model=model, data=str(chests), logs=str(tmp_path), bootstrap_samples=5, shifts=True
    )
    again = evaluate(dataclasses.replace(settings, batch_size=7))
    folder = Path(finished.logs) / "autoencoder" / "run"
    before = json.loads((folder / "metrics.json").read_text())["test"]
    after = again.metrics["test"]
    for metric in ("auroc", "recall", "specificity", "f1", "images", "auroc/viral"):
        assert after[metric] == pytest.approx(before[metric], abs=1e-9)
    figures = {path.stem for path in (again.directory / "figures").iterdir()}
    assert {"typical-test", "shifts-test"} <= figures
    # Recompute the row of one shift.
    test = train_autoencoder.load_data(finished).split("test")
    network = keras.saving.load_model(folder / "model.keras", compile=False)
    scores = perturbed_copies.predict_fn(network, ["score"])(shifts.SHIFTS["darker"](test.images))[
        "score"
    ]
    called = scores >= float(again.metrics["model"]["threshold"])
    row = again.metrics["shifts"]["darker"]
    assert row["recall"] == pytest.approx(called[test.labels == 1].mean())
    assert row["specificity"] == pytest.approx(1 - called[test.labels == 0].mean())
    assert row["auroc"] == pytest.approx(roc_auc_score(test.labels, scores), abs=1e-9)
