"""A run of a small classifier, and a model with a known explanation."""

from pathlib import Path

import keras
import numpy as np
import pytest
from classifier_run import write_run
from random_classifier import random_classifier


@pytest.fixture(scope="module")
def classifier(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of a classifier whose probabilities depend on the whole image."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    write_run(folder, random_classifier(tiny_backbone, 64, classes=2), str(phantoms))
    return folder


@pytest.fixture(scope="module")
def bright_corner() -> keras.Model:
    """A model whose second class has the brightness of the upper left quarter as its score."""
    images = keras.Input((64, 64, 3), name="images")
    quarter = keras.layers.Cropping2D(((0, 32), (0, 32)))(images)
    mean = keras.layers.GlobalAveragePooling2D()(quarter / 255)[:, :1]
    logits = keras.layers.Dense(2, name="logits")(mean)
    scaled = keras.layers.Rescaling(1.0, name="temperature")(logits)
    model = keras.Model(images, keras.layers.Softmax(name="probabilities")(scaled))
    model.get_layer("logits").set_weights([np.array([[-9.0, 9.0]]), np.array([4.5, -4.5])])
    return model
