"""Tests of class activation maps and SmoothGrad."""

import numpy as np
import pytest

from cxr_tf.explain import cams
from cxr_tf.models.classifier import build_classifier


@pytest.mark.parametrize("name", ["vgg16", "tiny"])
def test_cams_use_the_last_feature_maps_and_are_deterministic(
    name: str, tiny_backbone: str
) -> None:
    model = build_classifier(name, classes=2, image_size=64)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1)).astype(np.float32)
    images = np.repeat(images, 3, axis=3)
    layer = cams.last_feature_maps(model)
    assert layer.name == {"vgg16": "block5_conv3", "tiny": "conv2_relu"}[name]
    methods = cams.METHODS if name == "tiny" else ("gradcam++",)
    for method in methods:
        maps = cams.class_activation_maps(model, images, np.array([0, 1]), method)
        assert maps.shape == (2, 64, 64) and maps.dtype == np.float32
        assert maps.min() == 0 and maps.max() <= 1
        again = cams.class_activation_maps(model, images, np.array([0, 1]), method)
        np.testing.assert_array_equal(maps, again)
    with pytest.raises(ValueError, match="known: "):
        cams.class_activation_maps(model, images, np.array([0, 1]), "lime")
