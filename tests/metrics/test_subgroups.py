"""Tests of scores per subgroup against fairlearn, and of the gaps between groups."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from cxr_tf import metrics
from cxr_tf.metrics.subgroups import group_of

LABELS = np.random.default_rng(0).integers(0, 2, 300)
SEX = ["F" if k % 3 else "M" for k in range(300)]


def scores(predicted: np.ndarray, **columns: list[str]) -> dict:
    probabilities = np.eye(2)[predicted] * 0.8 + 0.1

    def score(weights: np.ndarray) -> dict[str, float]:
        return metrics.classification_scores(
            LABELS, probabilities, predicted, ("normal", "pneumonia"), weights
        )

    patients = [f"p{k // 2}" for k in range(300)]
    return metrics.subgroup_scores(score, columns, patients, bootstrap_samples=50)


def test_scores_of_groups_equal_those_of_fairlearn() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    predicted = np.where(np.random.default_rng(1).random(300) < 0.2, 1 - LABELS, LABELS)
    groups = scores(predicted, sex=SEX)["sex"]
    reference = fairlearn.MetricFrame(
        metrics={"accuracy": accuracy_score, "recall": recall_score},
        y_true=LABELS,
        y_pred=predicted,
        sensitive_features=SEX,
    ).by_group
    for group in ("F", "M"):
        for metric in ("accuracy", "recall"):
            assert groups[group][metric] == pytest.approx(reference.loc[group, metric])
    assert groups["F"]["images"] == 200 and groups["M"]["patients"] == 100
    low, high = groups["F"]["ci95"]["accuracy"]
    assert low < groups["F"]["accuracy"] < high


def test_only_gaps_with_separate_intervals_are_reported() -> None:
    missed = np.array([sex == "M" for sex in SEX]) & (np.arange(300) % 2 == 0)
    tables = scores(
        np.where(missed, 0, LABELS), sex=SEX, site=["a" if k < 150 else "b" for k in range(300)]
    )
    found = metrics.gaps(tables, ("recall",))
    assert [(g["column"], g["lowest"], g["highest"]) for g in found] == [("sex", "M", "F")]
    difference = tables["sex"]["F"]["recall"] - tables["sex"]["M"]["recall"]
    assert found[0]["difference"] == pytest.approx(difference)


def test_ages_are_grouped_and_one_group_alone_is_not_scored() -> None:
    values = ["3", "004Y", "007M", "0", "70", "", "adult"]
    assert [group_of("age", v) for v in values] == [
        *("1 to 4 years", "1 to 4 years", "below 1 year", "below 1 year"),
        *("65 years and older", "unknown", "adult"),
    ]
    assert group_of("sex", " F ") == "F"
    assert scores(LABELS, sex=["F"] * 300) == {}
    order = list(scores(LABELS, age=["70", "", "3"] * 100)["age"])
    assert order == ["1 to 4 years", "65 years and older", "unknown"]
