"""Tests of the comparison of two studies."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from study_folder import directory

from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


def compare(settings: RunStudy, *names: str) -> str:
    from cxr_tf.study.compare_studies import compare_studies

    return compare_studies(dataclasses.replace(settings, compare=names))


def test_study_compared_with_itself_has_no_changes(settings: RunStudy) -> None:
    text = compare(settings, "tiny", str(directory(settings)))
    assert "the same images" in text and "only in" not in text
    changes = re.findall(r"\)\s+([+-]\d\.\d{3})(  \*)?$", text, re.MULTILINE)
    assert len(changes) > 30
    assert {c for c, _ in changes} == {"+0.000"} and not any(star for _, star in changes)


def test_comparison_marks_disjoint_intervals(settings: RunStudy) -> None:
    shutil.copytree(directory(settings), directory(settings).with_name("other"))
    other = directory(settings).with_name("other")
    config = Run(other).config
    config["settings"]["seed"] = 5
    config["data_fingerprint"] = "another"
    (other / "config.json").write_text(json.dumps(config))
    metrics = json.loads((other / "metrics.json").read_text())
    for step in metrics["steps"]:
        if step["name"] == "autoencoder":
            step["run"] += "-2"
    (other / "metrics.json").write_text(json.dumps(metrics))
    folder = Path(settings.logs) / "autoencoder"
    shutil.copytree(folder / "tiny-autoencoder", folder / "tiny-autoencoder-2")
    scores = Run(folder / "tiny-autoencoder").metrics
    scores["test"] |= {"auroc": 0.5, "accuracy": 0.5}
    scores["test"]["ci95"] |= {"auroc": [0.4, 0.6], "accuracy": [0.4, 0.6]}
    Run(folder / "tiny-autoencoder").write_metrics(scores)
    scores["test"] |= {"auroc": 0.75, "accuracy": 0.6}
    scores["test"]["ci95"] |= {"auroc": [0.7, 0.8], "accuracy": [0.5, 0.7]}
    Run(folder / "tiny-autoencoder-2").write_metrics(scores)

    text = compare(settings, "tiny", "other")
    assert "DIFFERENT data" in text and "--seed: 0 -> 5" in text
    marked = [line for line in text.splitlines() if line.endswith("  *")]
    assert len(marked) == 1 and marked[0].split() == [
        *("auroc", "0.500", "(0.400", "to", "0.600)", "0.750", "(0.700", "to", "0.800)"),
        *("+0.250", "*"),
    ]
    assert "This is not a statistical test" in text


def test_missing_study_is_a_user_error(settings: RunStudy) -> None:
    with pytest.raises(UserError, match=r"no study mine .*known: tiny"):
        compare(settings, "tiny", "mine")
    with pytest.raises(UserError, match="two studies"):
        compare(settings, "tiny")


@pytest.mark.parametrize(
    "second, overlap",
    [((0.5, 0.6), True), ((0.4, 0.5), True), ((0.71, 0.8), False), ((0.1, 0.49), False)],
)
def test_intervals_that_share_a_point_overlap(second: tuple[float, float], overlap: bool) -> None:
    from cxr_tf.study.compare_studies import intervals_overlap

    assert intervals_overlap((0.5, 0.7), second) is overlap
    assert intervals_overlap(second, (0.5, 0.7)) is overlap
