"""Tests of the shortcut audit, and of the recall against the shortcut."""

from pathlib import Path

import numpy as np
import pytest

from cxr_tf import metrics
from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.decoding import load_images
from cxr_tf.data.loading import open_catalog

CLASSES = ("normal", "pneumonia")


@pytest.fixture(scope="module")
def radiographs(phantoms: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The images uint8 [72, 64, 64, 1], labels and patients of the phantoms."""
    catalog = open_catalog(str(phantoms))
    images, _ = load_images(catalog.paths, 64)
    return images, catalog.labels("binary"), catalog.patients


def test_audit_warns_if_the_classes_were_acquired_differently(
    radiographs: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    images, labels, patients = radiographs
    fair = metrics.audit_shortcuts(images, labels, patients, CLASSES)
    assert fair is not None and not fair.is_warning

    biased = images.copy()
    biased[labels == 1] = SHIFTS["framed lower"](SHIFTS["blurred"](images[labels == 1]))
    audit = metrics.audit_shortcuts(biased, labels, patients, CLASSES)
    assert audit is not None and audit.is_warning
    assert audit.auroc > 0.97 and audit.ci95[0] <= audit.auroc <= audit.ci95[1]
    assert max(audit.by_statistic, key=lambda k: audit.by_statistic[k]) == "chest_height"
    assert "chest height" in audit.summary()


def test_audit_needs_enough_patients_of_every_class(
    radiographs: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    images, labels, _ = radiographs
    assert metrics.audit_shortcuts(images, labels, ["one"] * len(labels), CLASSES) is None


def test_shortcut_model_round_trips_through_the_card(
    radiographs: tuple[np.ndarray, np.ndarray, list[str]],
) -> None:
    images, labels, _ = radiographs
    model = metrics.fit_shortcuts(images, labels, CLASSES)
    probabilities = model.probabilities(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    again = metrics.ShortcutModel.from_dict(model.as_dict())
    np.testing.assert_allclose(again.probabilities(images), probabilities, atol=0.01)
    assert metrics.macro_auroc(labels, probabilities) > 0.8


def test_a_quarter_of_each_class_is_against_the_shortcut() -> None:
    labels = np.array([0] * 8 + [1] * 5)
    own = np.linspace(0.1, 0.9, 13)
    probabilities = np.where(np.arange(2) == labels[:, None], own[:, None], 1 - own[:, None])
    against = metrics.against_shortcut(labels, probabilities)
    assert against.nonzero()[0].tolist() == [0, 1, 8, 9]


def test_recall_against_the_shortcut_counts_only_images_against_it() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    against = np.array([True, True, False, False, True, False, False, False])
    predicted = np.array([0, 1, 0, 0, 1, 1, 0, 0])
    table = metrics.recall_against_shortcut(labels, predicted, against, CLASSES)
    assert table["recall_against_shortcut/normal"] == 0.5
    assert table["recall_against_shortcut/pneumonia"] == 1.0
    assert table["worst_group_recall"] == pytest.approx(1 / 3)
    weights = np.array([3, 1, 1, 1, 1, 1, 1, 1])
    weighted = metrics.recall_against_shortcut(labels, predicted, against, CLASSES, weights)
    assert weighted["recall_against_shortcut/normal"] == 0.75
    absent = metrics.recall_against_shortcut(labels[:4], predicted[:4], against[:4], CLASSES)
    assert np.isnan(absent["recall_against_shortcut/pneumonia"])


def test_groups_of_a_class_have_equal_weight() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    against = np.array([True, False, False, False, True, False])
    weights = metrics.group_weights(labels, against)
    assert weights[0] == pytest.approx(weights[1:4].sum())
    assert weights[labels == 0].mean() == pytest.approx(1)
    assert metrics.group_weights(labels, None).tolist() == [1] * 6


def test_temperature_and_youden_follow_the_weights() -> None:
    logits = np.array([[2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, -2.0]])
    labels = np.array([0, 0, 1, 1])
    sure, _ = metrics.fit_calibration(logits, labels, np.array([1, 1, 1, 0.01]))
    unsure, _ = metrics.fit_calibration(logits, labels, np.array([1, 1, 1, 3]))
    assert unsure > 2 * sure
    scores = np.array([0.1, 0.6, 0.5, 0.9])
    low = metrics.operating_point(labels, scores, "youden", np.array([1, 1, 3, 1]))
    high = metrics.operating_point(labels, scores, "youden", np.array([1, 3, 1, 1]))
    assert low < 0.5 and high > 0.6
