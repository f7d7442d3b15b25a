"""Tests of folding BatchNorm into convolutions."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_classifier import drawings, random_classifier

from cxr_tf.models import backbones
from cxr_tf.models.batch_norm_folding import NormedConvolution, fold_frozen_norms, fold_norms
from cxr_tf.models.classifier import build_classifier, logits_of
from cxr_tf.serving import export, loading


def norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


@pytest.fixture(scope="module")
def resnet() -> keras.Model:
    return random_classifier("resnet50", 64)


@pytest.fixture
def tiny(tiny_backbone: str) -> Iterator[keras.Model]:
    yield random_classifier(tiny_backbone, 64)


def test_folded_copy_has_the_same_probabilities(resnet: keras.Model) -> None:
    images = drawings(3, 64)
    light = fold_norms(resnet)
    assert len(norms(resnet)) == 53 and not norms(light)
    expected, actual = (m.predict(images, verbose=0) for m in (resnet, light))
    assert expected.min() > 0.05 and np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert {"embedding", "logits", "probabilities"} <= {x.name for x in light.layers}


def test_folded_copy_does_not_share_variables(tiny: keras.Model) -> None:
    images, light = drawings(2, 64), fold_norms(tiny)
    before = light.predict(images, verbose=0)
    for weight in tiny.weights:
        weight.assign(weight + 1.0)
    np.testing.assert_array_equal(light.predict(images, verbose=0), before)


def test_folding_returns_a_model_without_norms_unchanged() -> None:
    model = build_classifier("alexnet", classes=2, image_size=64)
    assert fold_norms(model) is model
    assert fold_frozen_norms(model) is model


def test_norm_is_not_folded_if_the_convolution_has_other_consumers() -> None:
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="shared")(images)
    y = keras.layers.BatchNormalization(name="one_reader")(x)
    z = keras.layers.BatchNormalization(name="foldable")(
        keras.layers.Conv2D(4, 3, name="second")(y)
    )
    model = keras.Model(images, [x, z])
    assert [n.name for n in norms(fold_norms(model))] == ["one_reader"]


def test_trainable_norms_are_not_folded(tiny: keras.Model) -> None:
    backbones.freeze(tiny, "tiny", trainable_blocks=2, batch_norm=True)
    trainer = logits_of(tiny)
    assert fold_frozen_norms(trainer) is trainer


def test_folding_frozen_norms_keeps_the_gradients(tiny: keras.Model) -> None:
    backbones.freeze(tiny, "tiny", trainable_blocks=2, batch_norm=False)
    plain = logits_of(tiny)
    folded = fold_frozen_norms(plain)
    assert sum(isinstance(x, NormedConvolution) for x in folded.layers) == 2
    images, labels = drawings(4, 64), np.array([0, 1, 2, 0])

    def gradients(model: keras.Model) -> dict[str, np.ndarray]:
        with tf.GradientTape() as tape:
            # In inference mode, because the random numbers of dropout would differ.
            loss = keras.losses.sparse_categorical_crossentropy(
                labels, model(images, training=False), from_logits=True
            )
        values = tape.gradient(loss, [v.value for v in model.trainable_variables])
        names = [v.path for v in model.trainable_variables]
        return dict(zip(names, (np.asarray(g) for g in values), strict=True))

    expected, actual = gradients(plain), gradients(folded)
    assert expected.keys() == actual.keys() and "conv1_conv/kernel" in actual
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-5, name
        np.testing.assert_allclose(
            actual[name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max(), err_msg=name
        )


def test_training_the_folded_graph_updates_the_model(tiny: keras.Model) -> None:
    backbones.freeze(tiny, "tiny", trainable_blocks=2, batch_norm=False)
    before = {v.path: v.numpy() for v in tiny.variables}
    folded = fold_frozen_norms(logits_of(tiny))
    folded.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    folded.fit(drawings(4, 64), np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    moved = {v.path for v in tiny.variables if not np.array_equal(v.numpy(), before[v.path])}
    kernels = {"conv1_conv/kernel", "conv2_conv/kernel", "logits/kernel"}
    assert kernels <= moved
    assert not any("_bn/" in path for path in moved)
    logits = np.asarray(logits_of(tiny)(drawings(4, 64), training=False))
    np.testing.assert_allclose(folded.predict(drawings(4, 64), verbose=0), logits, rtol=1e-4)


def test_folding_in_bfloat16_reduces_rounding(tiny_backbone: str) -> None:
    """The kernel is folded in float32, so that the folded model is closer to the float32 one."""
    exact = random_classifier(tiny_backbone, 64)
    short = build_classifier(tiny_backbone, classes=3, image_size=64, precision="mixed_bfloat16")
    short.set_weights(exact.get_weights())
    short.trainable = False
    images = drawings(8, 64)
    truth = np.asarray(logits_of(exact)(images, training=False))
    errors = [
        np.abs(np.asarray(m(images, training=False)) - truth).mean()
        for m in (logits_of(short), fold_frozen_norms(logits_of(short)))
    ]
    assert 0 < errors[1] < errors[0]
    folded = fold_frozen_norms(logits_of(short))
    layers = [x for x in folded.layers if isinstance(x, NormedConvolution)]
    assert [x.output.dtype for x in layers] == ["bfloat16"] * 2


def test_exports_contain_no_norms(tiny: keras.Model, tmp_path) -> None:
    folder = export.export_classifier(
        tiny, tmp_path / "tiny", classes=("a", "b", "c"), threshold=0.5, card={"kind": "classifier"}
    )
    served = loading.load_served(str(folder))
    images = drawings(3, 64)
    actual = served.signature("tensor")(images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(actual, tiny.predict(images, verbose=0), atol=1e-5)
    names = [v.name for v in served.loaded.model_variables]
    assert len(names) == 6, names  # kernel and bias of two convolutions and of the last layer
