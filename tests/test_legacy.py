"""Deprecated flags and recorded settings are read under their present names."""

import json
from pathlib import Path

import pytest

from cxr_tf import legacy
from cxr_tf.runs import Run

TRAINING = ("model", "score", "bootstrap_samples", "operating_point")


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (["--resamples", "30"], ["--bootstrap-samples", "30"]),
        (["--resamples=30"], ["--bootstrap-samples", "30"]),
        (["--operating-point", "half"], ["--operating-point", "0.5"]),
        (["--model=restoring", "--score", "mark"],
         ["--model", "denoising", "--score", "lesion_mask"]),
        (["--max-false-alarm", "0.1"], ["--operating-point", "min-specificity:0.9"]),
        (["--min-sensitivity=0.95"], ["--operating-point", "min-sensitivity:0.95"]),
    ],
)  # fmt: skip
def test_deprecated_flag_is_translated_with_a_note(former: list[str], present: list[str]) -> None:
    arguments, notes = legacy.present_arguments(former, TRAINING)
    assert arguments == present
    assert notes and all(" is now " in note for note in notes)
    assert legacy.present_arguments(present, TRAINING) == (present, [])


def test_model_folder_named_like_a_deprecated_value_is_kept() -> None:
    folder = ["--model", "restoring"]
    assert legacy.present_arguments(folder, ("model", "images")) == (folder, [])


def test_recorded_settings_are_read_under_present_names(tmp_path: Path) -> None:
    settings = {"model": "restoring", "score": "removed", "resamples": 50, "max_false_alarm": None,
                "min_sensitivity": 0.9}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings, "resolved": {}}))
    assert Run(tmp_path).config["settings"] == {
        **{"model": "denoising", "score": "residual", "bootstrap_samples": 50},
        "operating_point": "min-sensitivity:0.9",
    }
