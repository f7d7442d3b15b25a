"""A tiny backbone with convolution, BatchNorm and dropout."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras

from cxr_tf.models import backbones


def features(x: keras.KerasTensor) -> keras.KerasTensor:
    x = x / 128
    for block, filters in (("conv1", 8), ("conv2", 16)):
        x = keras.layers.Conv2D(filters, 5, strides=4, name=f"{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{block}_bn")(x)
        x = keras.layers.Activation("relu", name=f"{block}_relu")(x)
        x = keras.layers.Dropout(0.3, name=f"{block}_dropout")(x)
    return keras.layers.GlobalAveragePooling2D(name="average", dtype="float32")(x)


def register() -> str:
    """Add the backbone to the table; return its name."""
    # All other fields are those of ResNet50.
    backbones.BACKBONES["tiny"] = dataclasses.replace(
        backbones.BACKBONES["resnet50"],
        features=features,
        blocks=("conv1", "conv2"),
        tuned_blocks=2,
        styled=("conv1_relu",),
        imagenet=None,
    )
    return "tiny"


@contextlib.contextmanager
def in_place_of(*names: str) -> Iterator[None]:
    """Register the tiny backbone under the names of other backbones while the block runs."""
    before = dict(backbones.BACKBONES)
    register()
    backbones.BACKBONES.update(dict.fromkeys(names, backbones.BACKBONES["tiny"]))
    try:
        yield
    finally:
        backbones.BACKBONES.clear()
        backbones.BACKBONES.update(before)
