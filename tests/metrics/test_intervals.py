"""Intervals: bootstrap over patients, and the exact interval at the boundary."""

import numpy as np
import pytest
from drawn_scores import BINARY, drawn
from scipy import stats
from sklearn import metrics as sk

from cxr_tf import metrics


def test_one_patient_has_no_interval() -> None:
    labels, scores = np.arange(20) % 2, np.linspace(0, 1, 20)

    def interval(patients: list[str]) -> dict[str, list[float]]:
        probabilities, called = np.stack([1 - scores, scores], 1), np.zeros(20, int)
        return metrics.confidence_intervals(
            labels, probabilities, called, patients, ("a", "b"), bootstrap_samples=20
        )

    assert interval(["p"] * 20) == {}
    assert interval(["p", "q"] * 10)["accuracy"] == [0, 1]


def test_bootstrap_samples_contain_all_images_of_a_patient() -> None:
    patients = ["b", "a", "b", "c", "b", "a"]
    weights = metrics.bootstrap_weights(patients, bootstrap_samples=200, seed=3)
    assert weights.shape == (200, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(
        weights, metrics.bootstrap_weights(patients, bootstrap_samples=200, seed=3)
    )


def test_intervals_have_nominal_coverage() -> None:
    """Of 30 patients with 5 images each, all five are classified correctly or none."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i}" for i in range(30)], 5)
    truth, covered, by_image = 0.7, 0, 0
    for trial in range(120):
        right = np.repeat(rng.random(30) < truth, 5)
        for names, by_patient in ((list(patients), True), ([str(i) for i in range(150)], False)):
            weights = metrics.bootstrap_weights(names, bootstrap_samples=200, seed=trial)
            means = (weights * right).sum(axis=1) / weights.sum(axis=1)
            low, high = np.percentile(means, [2.5, 97.5])
            covered += by_patient and low <= truth <= high
            by_image += not by_patient and low <= truth <= high
    assert covered / 120 >= 0.88
    # Treating images as independent gives intervals that are too narrow, so patients are drawn.
    assert by_image / 120 <= 0.75


def test_intervals_are_percentiles_over_bootstrap_samples() -> None:
    labels, probabilities, predicted = drawn(2, 50)
    patients = [f"p{i // 2}" for i in range(50)]
    intervals = metrics.confidence_intervals(
        labels, probabilities, predicted, patients, BINARY, bootstrap_samples=60, seed=1
    )
    rng = np.random.default_rng(1)
    areas = []
    names = sorted(set(patients))
    for _ in range(60):
        times = dict(zip(names, rng.multinomial(25, np.full(25, 1 / 25)), strict=True))
        rows = [i for i, p in enumerate(patients) for _ in range(times[p])]
        areas.append(sk.roc_auc_score(labels[rows], probabilities[rows, 1]))
    np.testing.assert_allclose(intervals["auroc"], np.percentile(areas, [2.5, 97.5]))


def perfect(sick: int, healthy: int, images: int = 1) -> dict:
    """Return the table of a perfect classifier, with intervals and counts."""
    labels = np.repeat([1] * sick + [0] * healthy, images)
    patients = [f"p{k // images}" for k in range(len(labels))]
    probabilities = np.stack([1 - labels, labels], axis=1).astype(float)
    scores = metrics.classification_scores(labels, probabilities, labels, BINARY)
    scores["counts"] = metrics.classification_counts(labels, labels, BINARY)
    scores["ci95"] = metrics.confidence_intervals(
        labels, probabilities, labels, patients, BINARY, bootstrap_samples=50
    )
    return scores


def test_perfect_scores_have_the_exact_interval_over_patients() -> None:
    scores = perfect(sick=2, healthy=10, images=3)
    of_two = stats.binomtest(2, 2).proportion_ci()
    of_ten = stats.binomtest(10, 10).proportion_ci()
    assert scores["ci95"]["recall"] == pytest.approx([of_two.low, 1])
    assert scores["ci95"]["specificity"] == pytest.approx([of_ten.low, 1])
    # A ranking of two patients against ten is no more certain than of two.
    assert scores["ci95"]["auroc"] == pytest.approx([of_two.low, 1])
    assert metrics.with_interval(scores, "recall", counts=True) == (
        "1.000 (6 of 6, 0.158 to 1.000)"
    )


def test_a_score_of_0_has_the_exact_interval() -> None:
    labels, predicted = np.array([1] * 5 + [0] * 5), np.zeros(10, int)
    probabilities = np.full((10, 2), 0.5)
    found = metrics.confidence_intervals(
        labels, probabilities, predicted, [str(k) for k in range(10)], BINARY, bootstrap_samples=50
    )
    assert found["recall"] == pytest.approx([0, stats.binomtest(0, 5).proportion_ci().high])


def test_a_class_of_one_patient_has_no_interval() -> None:
    scores = perfect(sick=1, healthy=9, images=4)
    for metric in ("recall", "recall/pneumonia", "precision", "f1", "auroc", "balanced_accuracy"):
        assert metric not in scores["ci95"], metric
    assert scores["ci95"]["specificity"][0] < 1
    assert "no interval" in metrics.with_interval(scores, "recall")


def test_detection_scores_at_the_boundary_have_the_exact_interval() -> None:
    sick, scores = np.arange(12) >= 6, np.arange(12.0)
    patients = [str(k) for k in range(12)]
    support = metrics.detection_support(sick, scores >= 6, patients)
    found = metrics.intervals(
        lambda w: metrics.detection_scores(sick, scores, 6, w),
        patients,
        bootstrap_samples=20,
        support=support,
    )
    assert found["recall"] == pytest.approx([0.025 ** (1 / 6), 1])


def test_equal_predictions_for_all_images_are_reported() -> None:
    assert metrics.prediction_warnings("test", np.ones(5, int), BINARY) == [
        "all 5 test images are classified as 'pneumonia'"
    ]
    assert not metrics.prediction_warnings("test", np.array([0, 1]), BINARY)
