"""The table of backbones, and the layers that are frozen."""

import numpy as np
import pytest

from cxr_tf.errors import UserError
from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier

RADIOGRAPHS = np.repeat(
    np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1)).astype(np.float32), 3, axis=-1
)


def test_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="resnet50, vgg16, alexnet"):
        backbones.backbone("vgg19")
    with pytest.raises(UserError, match="at least 64"):
        build_classifier("vgg16", classes=2, image_size=63)


def test_frozen_layers_keep_weights_and_statistics(tiny_backbone: str) -> None:
    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    backbones.freeze(model, tiny_backbone, trainable_blocks=1, batch_norm=False)
    before = {x.name: x.get_weights() for x in model.layers if x.weights}
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.train_on_batch(RADIOGRAPHS, np.array([0, 1, 1]))
    moved = {
        name
        for name, values in before.items()
        if any(
            (a != b).any() for a, b in zip(values, model.get_layer(name).get_weights(), strict=True)
        )
    }
    assert moved == {"conv2_conv", "logits"}
