"""Phantoms, and a finished run of an autoencoder on them."""

from pathlib import Path

import pytest
from tiny_autoencoder import settings_for

from cxr_tf.config import TrainAutoencoder


@pytest.fixture(scope="session")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 phantoms, 36 of them healthy, in a folder with README and masks."""
    from cxr_tf.data.sources.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("chests") / "phantoms"
    write_phantoms(folder, count=90, size=64, seed=3)
    return folder


@pytest.fixture(scope="session")
def finished(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAutoencoder:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    settings = settings_for(chests, tmp_path_factory.mktemp("finished"))
    train_autoencoder(settings)
    return settings
