"""Weights of the backbones: from files, from ImageNet, and random."""

import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.errors import UserError
from cxr_tf.models import backbones, weights
from cxr_tf.models.classifier import build_classifier, embedding_of, logits_of


@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_weights_file_loads_or_raises_with_the_first_differing_layer(
    name: str, tmp_path: Path
) -> None:
    """Weights saved from Keras Applications at another image size."""
    build = {"resnet50": keras.applications.ResNet50, "vgg16": keras.applications.VGG16}
    source = build[name](include_top=False, weights=None, input_shape=(96, 96, 3))
    path, other = tmp_path / f"{name}.weights.h5", {"resnet50": "vgg16", "vgg16": "resnet50"}[name]
    source.save_weights(path)
    model = build_classifier(name, classes=2, image_size=64)
    weights.load_weights(model, name, str(path))
    layers = backbones.backbone_layers(model, name)
    assert len(layers) == sum(bool(x.weights) for x in source.layers)
    for layer in layers:
        for ours, theirs in zip(
            layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    first = {"resnet50": "conv1_conv", "vgg16": "block1_conv1"}[other]
    with pytest.raises(UserError, match=f"does not fit {other}: first differing layer '{first}'"):
        weights.load_weights(build_classifier(other, classes=2, image_size=64), other, str(path))


def test_wrong_weights_file_names_the_layer_and_loads_nothing(
    tiny_backbone: str, tmp_path: Path
) -> None:
    def bare(filters: int, blocks: int = 2) -> keras.Model:
        x = inputs = keras.Input((64, 64, 3))
        for block in range(1, blocks + 1):
            x = keras.layers.Conv2D(8 if block == 1 else filters, 5, name=f"conv{block}_conv")(x)
            x = keras.layers.BatchNormalization(name=f"conv{block}_bn")(x)
        return keras.Model(inputs, x)

    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    before = model.get_weights()
    for wrong, message in (
        (bare(12), r"'conv2_conv': expected .*8x16.* the file has .*8x12"),
        (bare(16, blocks=1), r"'conv2_conv': expected .* has nothing"),
        (bare(16, blocks=3), "6 layers with weights, expected 4"),
    ):
        path = tmp_path / "wrong.weights.h5"
        wrong.save_weights(path)
        with pytest.raises(UserError, match=message):
            weights.load_weights(model, tiny_backbone, str(path))
        path.unlink()
    for name, content, message in (
        ("x.weights.h5", b"text", "not an HDF5"),
        ("x.keras", b"text", "not a Keras model"),
        ("x.pth", b"text", "not an HDF5"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            weights.load_weights(model, tiny_backbone, str(tmp_path / name))
    with pytest.raises(UserError, match="no such weights file"):
        weights.load_weights(model, tiny_backbone, str(tmp_path))
    for name in ("images", "layers"):  # HDF5 files without weights
        with h5py.File(tmp_path / "data.h5", "w") as file:
            file[name] = np.zeros((2, 3))
        with pytest.raises(UserError, match="first differing layer 'conv1_conv'"):
            weights.load_weights(model, tiny_backbone, str(tmp_path / "data.h5"))
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    right = bare(16)
    right.save_weights(tmp_path / "right.weights.h5")
    weights.load_weights(model, tiny_backbone, str(tmp_path / "right.weights.h5"))
    np.testing.assert_array_equal(
        model.get_layer("conv2_conv").kernel, right.get_layer("conv2_conv").kernel
    )


def test_missing_imagenet_weights_raise_instead_of_falling_back(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    before = model.get_weights()
    with pytest.raises(
        UserError, match=r"no ImageNet weights for alexnet.*convert_alexnet_weights"
    ):
        weights.load_weights(model, "alexnet", "imagenet")

    def offline() -> keras.Model:
        raise Exception("URL fetch failure on somewhere: None -- Name or service not known\nmore")

    entry = dataclasses.replace(backbones.BACKBONES[tiny_backbone], imagenet=offline)
    monkeypatch.setitem(backbones.BACKBONES, tiny_backbone, entry)
    with pytest.raises(UserError, match=r"not be downloaded \(URL.*--weights FILE.*--weights none"):
        weights.load_weights(model, tiny_backbone, "imagenet")
    with pytest.raises(UserError, match=r"--tiny-weights FILE.*--tiny-weights none"):
        weights.check_weights(tiny_backbone, "imagenet")
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_an_error_of_keras_without_a_message_is_named_by_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(keras.saving, "load_model", fail)
    with zipfile.ZipFile(tmp_path / "x.keras", "w"):
        pass
    with pytest.raises(UserError, match=r"cannot be loaded as a Keras model: RuntimeError"):
        weights.load_keras(tmp_path / "x.keras")


def test_vgg16_from_scratch_has_distinct_embeddings_of_unit_scale() -> None:
    images = np.stack(
        [phantom("normal", seed=5, patient=k, size=64).image for k in range(12)]
    )  # none of the phantoms that scale the weights
    images = np.repeat(images[..., None], 3, axis=-1).astype(np.float32)

    def build() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = build_classifier("vgg16", classes=2, image_size=64)
        weights.load_weights(model, "vgg16", "none")
        return model

    model = build()
    embeddings = np.asarray(embedding_of(model)(images))
    assert 0.3 < np.sqrt(np.mean(embeddings**2)) < 3
    # With He's initialisation alone, logits reach 200 and the correlation is 0.99.
    assert np.abs(np.asarray(logits_of(model)(images))).max() < 10
    assert np.corrcoef(embeddings)[np.triu_indices(12, 1)].mean() < 0.5
    for value, again in zip(model.get_weights(), build().get_weights(), strict=True):
        np.testing.assert_array_equal(value, again)
