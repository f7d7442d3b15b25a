"""Tests of the steps of a study: those that the data do not support are skipped."""

import json

from study_folder import Page, directory, page_of
from tiny_study import BACKBONES

from cxr_tf.config import RunStudy


def test_unsupported_task_is_skipped_with_a_reason(
    finished_study: RunStudy,
) -> None:
    steps = json.loads((directory(finished_study) / "metrics.json").read_text())["steps"]
    skipped = {s["name"]: s["skipped"] for s in steps if s.get("skipped")}
    assert set(skipped) == {f"three-class-{b}" for b in BACKBONES} | {"three-class"}
    assert "neither bacterial nor viral" in skipped["three-class"]
    assert "--task" not in skipped["three-class"]
    assert skipped["three-class"] in Page(page_of(finished_study)).words
