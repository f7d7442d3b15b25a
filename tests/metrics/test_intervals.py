"""Intervals: bootstrap over patients, and the exact interval at the boundary."""

import numpy as np
from drawn_scores import BINARY, drawn
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


def test_patients_are_resampled_whole() -> None:
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
    """Accuracy of 30 patients with 5 images each, all five right or wrong together."""
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
    # Images taken as independent claim more than they know: what resampling patients is for.
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
