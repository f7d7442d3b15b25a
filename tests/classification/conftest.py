"""A finished training run of the tiny backbone, and a patch that skips figures and export."""

from pathlib import Path

import pytest
from tiny_classifier import keep_checkpoints, skip_figures_and_export, tiny_settings

from cxr_tf.config import TrainClassifier


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_figures_and_export(monkeypatch)


@pytest.fixture(scope="session")
def undisturbed(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainClassifier:
    """The settings of an uninterrupted training run of three epochs, whose checkpoints are kept."""
    from cxr_tf.classification.train_classifier import train_classifier

    settings = tiny_settings(phantoms, tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        skip_figures_and_export(patch)
        keep_checkpoints(patch)
        train_classifier(settings)
    return settings
