"""Tests of conformal prediction sets against crepes, and of their coverage by patient."""

import numpy as np
import pytest

from cxr_tf import metrics

CLASSES = ("normal", "bacterial", "viral")


def draws(patients: int, seed: int, images: int = 1) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw labels, probabilities and patients; all images of a patient are alike."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, patients)
    logits = rng.normal(0, 1.2, (patients, 3)) + 2 * np.eye(3)[labels]
    counts = rng.integers(1, images + 1, patients)
    logits = np.repeat(logits, counts, axis=0) + rng.normal(0, 0.1, (counts.sum(), 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.repeat([f"p{k}" for k in range(patients)], counts).tolist()
    return np.repeat(labels, counts), probabilities, names


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_equal_those_of_crepes_for_one_image_per_patient(coverage: float) -> None:
    crepes = pytest.importorskip("crepes")
    labels, probabilities, patients = draws(300, 0)
    _, new, _ = draws(200, 1)
    thresholds = metrics.conformal_thresholds(labels, probabilities, patients, coverage=coverage)
    reference = crepes.ConformalClassifier()
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    reference.fit(scores, bins=labels)
    for k in range(3):
        expected = reference.predict_set(
            (1 - new)[:, [k]], bins=np.full(len(new), k), confidence=coverage, smoothing=False
        )
        np.testing.assert_array_equal(new[:, k] >= thresholds[k], expected[:, 0].astype(bool))


def test_coverage_holds_for_each_class_and_by_patient() -> None:
    """Patients with many images have the weight of patients with one."""
    held = []
    for seed in range(40):
        thresholds = metrics.conformal_thresholds(*draws(400, 2 * seed, 12), coverage=0.9)
        labels, probabilities, patients = draws(400, 2 * seed + 1, 12)
        covered = (probabilities >= thresholds)[np.arange(len(labels)), labels]
        _, first = np.unique(patients, return_index=True)  # a random image of each patient
        held.append([covered[first][labels[first] == k].mean() for k in range(3)])
    np.testing.assert_allclose(np.mean(held, axis=0), 0.9, atol=0.02)


def test_class_with_too_few_patients_is_never_excluded() -> None:
    labels, probabilities, patients = (
        np.zeros(18, int),
        np.full((18, 2), 0.5),
        list("abcdefghijklmnopqr"),
    )
    few = metrics.conformal_thresholds(labels, probabilities, patients, coverage=0.95)
    assert few.tolist() == [0, 0]
    enough = metrics.conformal_thresholds(
        np.zeros(19, int), np.full((19, 2), 0.5), [*patients, "s"], coverage=0.95
    )
    assert enough.tolist() == [0.5, 0]
    # Nineteen images of one patient are one patient.
    one = metrics.conformal_thresholds(
        np.zeros(19, int), np.full((19, 2), 0.5), ["a"] * 19, coverage=0.95
    )
    assert one.tolist() == [0, 0]


def test_scores_of_sets_count_coverage_and_undecided_images() -> None:
    labels, predicted = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    sets = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]], bool)
    scores = metrics.set_scores(labels, sets, predicted, CLASSES)
    assert scores["coverage"] == 0.5 and scores["coverage/viral"] == 0
    assert scores["set_size"] == 1 and scores["undecided"] == 0.5
    assert scores["accuracy_decided"] == 0.5
    weighted = metrics.set_scores(labels, sets, predicted, CLASSES, np.array([3, 0, 1, 0]))
    assert weighted["coverage"] == 0.75 and np.isnan(weighted["coverage/bacterial"])


def test_risk_coverage_starts_with_the_most_certain_images() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.45, 0.55]])
    answered, error_rate = metrics.risk_coverage(labels, probabilities, predicted)
    assert answered.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(error_rate, [0, 0, 1 / 3, 1 / 4])
