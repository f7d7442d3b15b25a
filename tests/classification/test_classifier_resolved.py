"""Tests of the settings that a resumed training keeps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_training import killed_after_an_epoch
from tiny_classifier import tiny_settings


@pytest.mark.usefixtures("quick")
def test_resumed_run_keeps_its_precision(
    tiny_backbone: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification import train_classifier
    from cxr_tf.training import precision as training_precision

    def resolving_to(precision: str) -> Callable[..., str]:
        return lambda wanted, **_: precision if wanted == "auto" else wanted

    settings = tiny_settings(phantoms, tmp_path, precision="auto", epochs=2)
    with monkeypatch.context() as patch, killed_after_an_epoch():
        patch.setattr(training_precision, "resolve_precision", resolving_to("float32"))
        train_classifier.train_classifier(settings)
    monkeypatch.setattr(training_precision, "resolve_precision", resolving_to("mixed_bfloat16"))
    run = train_classifier.train_classifier(dataclasses.replace(settings, resume=True))
    assert run.config["resolved"]["precision"] == "float32"
    assert run.metrics["model"]["precision"] == "float32"
