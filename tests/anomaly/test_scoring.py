"""Tests of the scores of an autoencoder that were not chosen."""

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_tf.config import TrainAutoencoder


def test_alternative_scores_are_recorded(finished: TrainAutoencoder) -> None:
    import keras
    from sklearn.metrics import roc_auc_score

    from cxr_tf import metrics as metrics_module
    from cxr_tf.anomaly import perturbed_copies, train_autoencoder
    from cxr_tf.models.autoencoder import build_autoencoder

    folder = Path(finished.logs) / "autoencoder" / finished.name
    recorded = json.loads((folder / "metrics.json").read_text())["other_scores"]
    assert set(recorded) == {"appearance", "residual", "lesion_mask"}
    recorded.pop("appearance")  # the test of the export covers it
    network = keras.saving.load_model(folder / "model.keras", compile=False).get_layer("denoising")
    data = train_autoencoder.load_data(finished)
    for score, tables in recorded.items():
        for split, table in tables.items():
            part = data.split(split)
            scores = perturbed_copies.predict_fn(build_autoencoder(network, score), ["score"])(
                part.images
            )["score"]
            assert table["auroc"] == pytest.approx(roc_auc_score(part.labels, scores), abs=1e-9)
            # With so few bootstrap samples the interval need not contain the score.
            draws = metrics_module.bootstrap_weights(
                part.catalog.patients, bootstrap_samples=5, seed=0
            )
            bootstrap = [
                roc_auc_score(part.labels, scores, sample_weight=w)
                for w in draws
                if w[part.labels == 0].any() and w[part.labels == 1].any()
            ]
            assert table["ci95"]["auroc"] == pytest.approx(
                list(np.percentile(bootstrap, [2.5, 97.5])), abs=1e-9
            )
