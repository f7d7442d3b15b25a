"""Scores of an anomaly detector, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from cxr_tf import metrics


def test_detection_scores_match_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    sick = rng.random(200) < 0.4
    scores = rng.normal(size=200) + sick
    found = metrics.detection_scores(sick, scores, 0.3)
    called = scores >= 0.3
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(sick, scores))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(sick, scores))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(sick, called))
    assert found["precision"] == pytest.approx(sk.precision_score(sick, called))
    assert found["recall"] == pytest.approx(sk.recall_score(sick, called))
    assert found["specificity"] == pytest.approx(sk.recall_score(~sick, ~called))
    assert found["f1"] == pytest.approx(sk.f1_score(sick, called))
    without_sick = metrics.detection_scores(np.zeros(5, bool), np.arange(5.0), 3.0)
    assert np.isnan(without_sick["auroc"]) and np.isnan(without_sick["recall"])
    assert without_sick["specificity"] == pytest.approx(0.6)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.detection_scores(np.array([True, False]), np.array([np.nan, 0.1]), 0.5)
