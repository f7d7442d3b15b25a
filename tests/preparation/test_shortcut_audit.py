"""`--check` reports the shortcut audit of a data set, and does not warn about phantoms."""

import logging
from pathlib import Path

import pytest

from cxr_tf.config import PrepareData
from cxr_tf.preparation.prepare_data import prepare_data
from cxr_tf.runs import Run


def test_check_writes_the_shortcut_audit(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cxr_tf")
    prepare_data(PrepareData(check=str(phantoms), logs=str(tmp_path)))
    line = next(m for m in caplog.messages if "statistics of the acquisition" in m)
    assert "warning" not in line
    run = Run(tmp_path / "data" / "phantoms")
    audit = run.metrics["shortcuts"]
    low, high = audit["ci95"]["auroc"]
    assert low <= audit["auroc"] <= high
    assert "auroc/chest_height" in audit
    assert (run.directory / "figures" / "shortcuts.png").exists()
