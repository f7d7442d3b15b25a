"""Tests of remarks on predictions."""

from cxr_tf.serving.prediction.remarks import remarks

PROBABILITIES = {"normal": 0.1, "bacterial": 0.5, "viral": 0.4}


def test_remarks_name_the_classes_that_cannot_be_distinguished() -> None:
    prediction = {"probabilities": PROBABILITIES, "prediction_set": [False, True, True]}
    assert remarks(prediction) == ["cannot distinguish bacterial from viral"]
    assert remarks({**prediction, "prediction_set": [True] * 3}) == [
        "cannot distinguish between normal, bacterial and viral"
    ]
    assert remarks({**prediction, "is_novel": True})[0] == "unlike the training images"
    empty = remarks({**prediction, "prediction_set": [False] * 3})
    assert empty == ["cannot decide: no class is likely enough"]


def test_certain_predictions_and_models_without_these_outputs_have_no_remark() -> None:
    sure = {"classes": list(PROBABILITIES), "prediction_set": [False, True, False]}
    assert remarks({**sure, "is_novel": False}) == []
    assert remarks({"label": "viral", "probabilities": PROBABILITIES}) == []
    assert remarks({"score": 0.3, "is_anomaly": True}) == []
