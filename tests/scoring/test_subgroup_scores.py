"""Scores by subgroup of classifiers and of autoencoders, on the columns of a list."""

import logging

import numpy as np
import pytest

from cxr_tf import metrics
from cxr_tf.anomaly.scoring import score_by_subgroup
from cxr_tf.data.catalog import Catalog, Radiograph
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.scoring.classifier import score_subgroups


def dataset(sexes: list[str]) -> ImageDataset:
    """Return images that alternate between two classes, each of a different patient."""
    labels = np.arange(len(sexes)) % 2
    groups = [(("sex", sex),) if sex else () for sex in sexes]
    radiographs = tuple(
        Radiograph(f"{k}.png", ("normal", "pneumonia")[labels[k]], f"p{k}", "test", str(k), group)
        for k, group in enumerate(groups)
    )
    catalog = Catalog("here", radiographs, ("normal", "pneumonia"))
    images = np.zeros((len(sexes), 8, 8, 1), np.uint8)
    return ImageDataset(catalog, images, labels, ("normal", "pneumonia"))


def test_autoencoder_and_classifier_have_scores_per_subgroup(
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = dataset(["F"] * 40 + ["M"] * 40)
    # Correct for all women, and for healthy men only.
    score = np.where(np.arange(80) < 40, part.labels, 0).astype(float)
    with caplog.at_level(logging.INFO):
        detected = score_by_subgroup(part, score, 0.5, bootstrap_samples=20)
    probabilities = np.stack([1 - score, score], axis=1)
    classified = score_subgroups(part, probabilities, score.astype(int), bootstrap_samples=20)
    for found in (detected, classified):
        women, men = found["groups"]["sex"]["F"], found["groups"]["sex"]["M"]
        assert (women["recall"], men["recall"]) == (1, 0)
        assert (women["specificity"], men["specificity"]) == (1, 1)
        assert women["patients"] == men["images"] == 40
        assert {"metric": "recall", "column": "sex", "lowest": "M", "highest": "F"} in [
            {k: v for k, v in gap.items() if k != "difference"} for gap in found["gaps"]
        ]
    expected = metrics.detection_scores(part.labels[40:] == 1, score[40:], 0.5)
    assert detected["groups"]["sex"]["M"]["f1"] == expected["f1"]
    assert "sex F (40 patients): auroc 1.000" in caplog.text
    assert "recall is lower for sex M than for F" in caplog.text


def test_data_without_group_columns_have_no_subgroups() -> None:
    assert score_by_subgroup(dataset([""] * 10), np.zeros(10), 0.5, bootstrap_samples=5) == {}
