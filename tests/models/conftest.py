"""Fixtures of the tests of AlexNet: torch's weights, and a fast initialisation."""

import keras
import numpy as np
import pytest
import torchvision_alexnet


@pytest.fixture(scope="module")
def state_dict() -> dict[str, np.ndarray]:
    return torchvision_alexnet.weights()


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialise weights with zeros, because drawing those of AlexNet takes seconds."""
    zeros = keras.initializers.Zeros()
    monkeypatch.setattr(
        keras.initializers.HeNormal,
        "__call__",
        lambda self, shape, dtype=None, **kwargs: zeros(shape, dtype),
    )
