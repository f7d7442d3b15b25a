"""Tests of MixStyle."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_classifier import drawings, random_classifier

from cxr_tf.models import backbones
from cxr_tf.models.batch_norm_folding import fold_frozen_norms
from cxr_tf.models.classifier import logits_of
from cxr_tf.models.mixstyle import MixedStyle, mix_styles

RNG = np.random.default_rng(0)
# Every channel of every image has a different mean and spread.
MAPS = (RNG.normal(size=(8, 12, 12, 3)) * RNG.uniform(0.5, 3, (8, 1, 1, 3))).astype(np.float32)
MAPS += RNG.uniform(-4, 4, (8, 1, 1, 3)).astype(np.float32)


def moments(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return maps.mean(axis=(1, 2)), maps.std(axis=(1, 2))


def test_mixstyle_interpolates_styles_and_keeps_the_content() -> None:
    mixed = np.asarray(MixedStyle(share=1.0)(MAPS, training=True))
    assert np.abs(mixed - MAPS).max() > 1
    for before, after in zip(moments(MAPS), moments(mixed), strict=True):
        partner = np.roll(before, 1, axis=0)
        assert np.all(after >= np.minimum(before, partner) - 0.02)
        assert np.all(after <= np.maximum(before, partner) + 0.02)
    for before, after in zip(MAPS, mixed, strict=True):
        for channel in range(3):
            pair = before[..., channel].ravel(), after[..., channel].ravel()
            assert np.corrcoef(*pair)[0, 1] == pytest.approx(1, abs=1e-4)


def test_mixstyle_mixes_the_given_share_of_images() -> None:
    maps = np.tile(MAPS, (50, 1, 1, 1))
    mixed = np.asarray(MixedStyle(share=0.5)(maps, training=True))
    changed = np.abs(mixed - maps).max(axis=(1, 2, 3)) > 1e-4
    assert 0.4 < changed.mean() < 0.6  # 400 draws: four standard errors
    np.testing.assert_allclose(MixedStyle(share=0.0)(MAPS, training=True), MAPS, atol=1e-5)


def test_mixstyle_of_a_constant_map_is_finite() -> None:
    flat = np.concatenate([np.zeros_like(MAPS[:1]), MAPS[:1]])
    assert np.isfinite(MixedStyle(share=1.0)(flat, training=True)).all()


def test_mixstyle_computes_its_statistics_in_float32() -> None:
    short = tf.cast(np.tile(MAPS, (1, 8, 8, 1)), tf.bfloat16)
    mixed = MixedStyle(share=0.0)(short, training=True)
    assert mixed.dtype == tf.bfloat16
    np.testing.assert_allclose(
        tf.cast(mixed, tf.float32), tf.cast(short, tf.float32), rtol=0.02, atol=0.05
    )


def test_mixstyle_changes_training_but_not_inference(tiny_backbone: str) -> None:
    model = random_classifier(tiny_backbone, 64)
    backbones.freeze(model, tiny_backbone, trainable_blocks=2, batch_norm=False)
    plain = logits_of(model)
    entry = backbones.backbone(tiny_backbone)
    mixed = mix_styles(fold_frozen_norms(plain), entry.styled)
    assert [v.path for v in mixed.weights] == [v.path for v in fold_frozen_norms(plain).weights]
    images = drawings(4, 64)
    expected = np.asarray(plain(images, training=False))
    actual = np.asarray(mixed(images, training=False))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    # Up to this layer only MixStyle is random; the outputs of the model also depend on dropout.
    inside = keras.Model(mixed.input, mixed.get_layer("conv1_relu_style").output)
    assert not np.allclose(inside(images, training=True), inside(images, training=False))


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "alexnet"])
def test_styled_layers_exist_in_every_backbone(name: str) -> None:
    images = keras.Input((64, 64, 3))
    model = keras.Model(images, backbones.backbone(name).features(images))
    mixed = mix_styles(model, backbones.backbone(name).styled)
    assert sum(isinstance(x, MixedStyle) for x in mixed.layers) == 2


def test_unknown_layer_raises(tiny_backbone: str) -> None:
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        mix_styles(random_classifier(tiny_backbone, 64), ["conv9"])
