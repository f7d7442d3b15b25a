"""Tests of the pictures of the report: the map of the images."""

from pathlib import Path

from cxr_tf.config import RunStudy
from cxr_tf.runs import Run


def test_map_keeps_all_test_images(settings: RunStudy) -> None:
    from cxr_tf.study import report_pictures

    knn = Run(Path(settings.logs) / "knn/tiny-binary-knn")
    drawn = report_pictures.image_map(knn, ["normal", "pneumonia"], 20)
    assert drawn is not None
    images = knn.metrics["test"]["images"]
    assert len(drawn["points"]) == 20 and drawn["all"] == 90
    assert sum(p["test"] for p in drawn["points"]) == images < 20
    for x, y in drawn["data"]["after"]:
        assert 0 <= x <= 1000 and 0 <= y <= 640
    assert len(drawn["data"]["descriptions"]) == len(drawn["data"]["before"]) == 20
    for point, text in zip(drawn["points"], drawn["data"]["descriptions"], strict=True):
        assert text.startswith(f"{point['label']}, ") and ("(wrong)" in text) == point["wrong"]
