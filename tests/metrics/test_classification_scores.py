"""Scores of a classifier, against scikit-learn."""

import numpy as np
import pytest
from drawn_scores import BINARY, THREE, drawn
from sklearn import metrics as sk

from cxr_tf import files, metrics


def test_binary_scores_match_scikit_learn() -> None:
    labels, probabilities, predicted = drawn(2, 200)
    scores = metrics.classification_scores(labels, probabilities, predicted, BINARY)
    p = probabilities[:, 1]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted),
        "recall": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
        "f1": sk.f1_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, p),
        "auprc": sk.average_precision_score(labels, p),
        "brier": sk.brier_score_loss(labels, p),
        "loss": sk.log_loss(labels, p),
        "recall/normal": sk.recall_score(labels, predicted, pos_label=0),
        "recall/pneumonia": sk.recall_score(labels, predicted),
        "auroc/normal": sk.roc_auc_score(1 - labels, probabilities[:, 0]),
    }
    assert {k: scores[k] for k in expected} == pytest.approx(expected)
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(expected["auroc"])


@pytest.mark.parametrize("seed", range(5))
def test_weighted_areas_match_scikit_learn(seed: int) -> None:
    labels, probabilities, predicted = drawn(2, 60, seed)
    # Some have weight 0: every third patient is missing from a bootstrap sample.
    weights = np.random.default_rng(seed).integers(0, 3, 60)
    scores = metrics.classification_scores(labels, probabilities, predicted, BINARY, weights)
    p = probabilities[:, 1]
    assert scores["auroc"] == pytest.approx(sk.roc_auc_score(labels, p, sample_weight=weights))
    expected = sk.average_precision_score(labels, p, sample_weight=weights)
    assert scores["auprc"] == pytest.approx(expected)


def test_multiclass_scores_are_macro_averages() -> None:
    labels, probabilities, predicted = drawn(3, 200)
    scores = metrics.classification_scores(labels, probabilities, predicted, THREE)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro"),
        "recall": sk.recall_score(labels, predicted, average="macro"),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "loss": sk.log_loss(labels, probabilities),
        "brier": sk.brier_score_loss(labels, probabilities, scale_by_half=True),
        "precision/viral": sk.precision_score(labels == 2, predicted == 2),
        "specificity/viral": sk.recall_score(labels != 2, predicted != 2),
        "auprc/bacterial": sk.average_precision_score(labels == 1, probabilities[:, 1]),
    }
    assert {k: scores[k] for k in expected} == pytest.approx(expected)
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(expected["auroc"])


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_weighting_an_image_equals_repeating_it(classes: tuple[str, ...]) -> None:
    labels, probabilities, predicted = drawn(len(classes), 60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    rows = np.repeat(np.arange(60), weights)
    weighted = metrics.classification_scores(labels, probabilities, predicted, classes, weights)
    repeated = metrics.classification_scores(
        labels[rows], probabilities[rows], predicted[rows], classes
    )
    assert weighted == pytest.approx(repeated)


def test_undefined_scores_are_nan_and_null_in_json(tmp_path) -> None:
    labels, probabilities, predicted = drawn(3, 40)
    kept = labels != 2
    scores = metrics.classification_scores(
        labels[kept], probabilities[kept], predicted[kept], THREE
    )
    for metric in ("recall/viral", "auroc/viral", "auprc/viral", "recall", "auroc"):
        assert np.isnan(scores[metric]), metric
    assert np.isfinite(scores["accuracy"])
    patients = [str(i) for i in range(kept.sum())]
    scores["ci95"] = metrics.confidence_intervals(
        labels[kept], probabilities[kept], predicted[kept], patients, THREE, bootstrap_samples=10
    )
    assert "auroc/viral" not in scores["ci95"]
    files.write_json(tmp_path / "x.json", scores)
    assert "NaN" not in (tmp_path / "x.json").read_text()
    assert '"auroc/viral": null' in (tmp_path / "x.json").read_text()


def test_a_single_image_can_be_scored() -> None:
    scores = metrics.classification_scores(
        np.array([1]), np.array([[0.2, 0.8]]), np.array([1]), BINARY
    )
    assert scores["accuracy"] == scores["recall"] == scores["precision"] == 1
    assert np.isnan(scores["auroc"])
    assert np.isnan(scores["specificity"])
    # A probability of exactly 0 for the truth costs a lot, not everything.
    sure = metrics.classification_scores(
        np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([1, 1]), BINARY
    )
    assert np.isfinite(sure["loss"])
