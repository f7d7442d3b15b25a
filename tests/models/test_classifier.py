"""The graph of classifiers."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier, calibrated, embedding_of, logits_of

RADIOGRAPHS = np.repeat(
    np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1)).astype(np.float32), 3, axis=-1
)


def test_probabilities_do_not_depend_on_exposure(tiny_backbone: str) -> None:
    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    bright = RADIOGRAPHS * 0.5 + 100
    np.testing.assert_allclose(model(RADIOGRAPHS), model(bright), atol=2e-3)
    assert np.isfinite(model(np.zeros_like(RADIOGRAPHS))).all()


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "alexnet"])
def test_classifiers_are_flat_with_named_layers(name: str) -> None:
    model = build_classifier(name, classes=3, image_size=64)
    assert not [x.name for x in model.layers if isinstance(x, keras.Model)]
    width = {"resnet50": 2048, "vgg16": 512, "alexnet": 4096}[name]
    assert model.get_layer("embedding").output.shape == (None, width)
    assert model.get_layer("logits").output.shape == (None, 3)
    assert model.output_shape == (None, 3)
    of_blocks = backbones.backbone_layers(model, name)
    with_weights = [x.name for x in model.layers if x.weights and x.name != "logits"]
    assert [x.name for x in of_blocks] == with_weights
    for blocks in range(len(backbones.BACKBONES[name].blocks) + 1):
        backbones.freeze(model, name, trainable_blocks=blocks, batch_norm=False)
        moving = {x.name for x in of_blocks if x.trainable}
        assert all(n.startswith(backbones.BACKBONES[name].blocks[-blocks or 99 :]) for n in moving)
        assert bool(moving) == bool(blocks)


def test_calibration_divides_the_logits_and_adds_the_bias(
    tiny_backbone: str, tmp_path: Path
) -> None:
    model = build_classifier(tiny_backbone, classes=3, image_size=64)
    logits, bias = logits_of(model)(RADIOGRAPHS).numpy(), np.array([0.5, -0.2, -0.3])
    cooled = calibrated(model, 2.5)
    np.testing.assert_allclose(cooled(RADIOGRAPHS), keras.ops.softmax(logits / 2.5), atol=1e-6)
    cooled = calibrated(model, 2.5, bias)
    cooled.save(tmp_path / "model.keras")
    for calibrated_model in (cooled, keras.saving.load_model(tmp_path / "model.keras")):
        expected = keras.ops.softmax(logits / 2.5 + bias)
        np.testing.assert_allclose(calibrated_model(RADIOGRAPHS), expected, atol=1e-6)
    assert cooled.get_layer("probabilities").output.shape == (None, 3)
    assert embedding_of(cooled)(RADIOGRAPHS).shape == (3, 16)


def test_mixed_precision_model_is_rebuilt_in_float32(tiny_backbone: str, tmp_path: Path) -> None:
    mixed = build_classifier(tiny_backbone, classes=2, image_size=64, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert mixed.get_layer("conv1_conv").compute_dtype == "bfloat16"
    assert {w.dtype for w in mixed.weights} == {"float32"}
    full = build_classifier(tiny_backbone, classes=2, image_size=64)
    full.set_weights(mixed.get_weights())
    assert full.get_layer("conv1_conv").compute_dtype == "float32"
    np.testing.assert_allclose(full(RADIOGRAPHS), mixed(RADIOGRAPHS), atol=2e-2)
    calibrated(full, 1.7).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again(RADIOGRAPHS), calibrated(full, 1.7)(RADIOGRAPHS))


def test_gradcam_runs_on_the_flat_graph(tiny_backbone: str) -> None:
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.utils.scores import CategoricalScore

    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    cam = GradcamPlusPlus(model, clone=False)(
        CategoricalScore([1, 1, 1]), RADIOGRAPHS, penultimate_layer="conv2_conv"
    )
    assert cam.shape == (3, 64, 64)
    assert np.isfinite(cam).all()
    assert isinstance(model(tf.constant(RADIOGRAPHS)), tf.Tensor)
