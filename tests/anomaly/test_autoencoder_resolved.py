"""Tests of the default number of epochs of an autoencoder."""

import dataclasses
from pathlib import Path

import pytest

from cxr_tf.config import TrainAutoencoder


@pytest.mark.parametrize(
    ("settings", "healthy", "epochs"),
    [
        ({}, 1025, 8),
        ({"model": "plain"}, 1025, 30),
        ({}, 160, 50),
        ({}, 30, 60),
        ({"model": "plain"}, 160, 30),
        ({"epochs": 3}, 160, 3),
    ],
)
def test_fewer_images_get_more_default_epochs(
    settings: dict, healthy: int, epochs: int, tmp_path: Path
) -> None:
    from cxr_tf.anomaly.resolved import resolve
    from cxr_tf.runs import Run

    assert resolve(TrainAutoencoder(**settings), healthy, Run(tmp_path)).epochs == epochs


def test_resumed_run_keeps_its_number_of_epochs(tmp_path: Path) -> None:
    from cxr_tf.anomaly.resolved import resolve
    from cxr_tf.runs import Run

    run = Run(tmp_path)
    resumed = TrainAutoencoder(resume=True)
    assert resolve(resumed, 160, run).epochs == 50
    (tmp_path / "config.json").write_text('{"settings": {"epochs": 46}}')
    assert resolve(resumed, 160, run).epochs == 46  # images were added since
    assert resolve(dataclasses.replace(resumed, epochs=7), 160, run).epochs == 7
