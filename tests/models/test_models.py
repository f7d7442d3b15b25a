"""Tests of backbones, classifiers and their weights."""

import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import torchvision_alexnet

from cxr_tf.config import ConvertAlexNetWeights
from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.errors import UserError
from cxr_tf.models import alexnet, backbones, weights
from cxr_tf.models.alexnet_conversion import convert_alexnet_weights
from cxr_tf.models.classifier import build_classifier, calibrated, embedding_of, logits_of


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


def keras_alexnet(size: int, state: dict[str, np.ndarray]) -> keras.Model:
    """Build AlexNet with 1000 logits and torch's weights."""
    inputs = keras.Input((size, size, 3))
    features = alexnet.alexnet_features(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1000, name="fc8")(features))
    for layer, values in alexnet.from_torch(state).items():
        model.get_layer(layer).set_weights(values)
    model.get_layer("fc8").set_weights([state["classifier.6.weight"].T, state["classifier.6.bias"]])
    return model


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("size", torchvision_alexnet.SIZES)
def test_alexnet_matches_torchvision(size: int, state_dict: dict) -> None:
    with np.load(torchvision_alexnet.LOGITS) as stored:
        expected = stored[f"size_{size}"]
    images = torchvision_alexnet.images(size)
    logits = keras_alexnet(size, state_dict)(images, training=False).numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 7), (6, 6), (13, 4), (12, 18)])
def test_adaptive_pooling_matches_torch(size: tuple[int, int]) -> None:
    height, width = size
    images = torchvision_alexnet.draw((2, height, width, 3))
    inputs = keras.Input((height, width, 3))
    pool = keras.Model(inputs, alexnet._adaptive_average_pooling(inputs, 6))
    pooled = pool(images).numpy() if size != (6, 6) else images
    for i in range(6):
        for j in range(6):
            # Bins from floor(i h / 6) to ceil((i + 1) h / 6), as documented by torch.
            rows = slice(int(np.floor(i * height / 6)), int(np.ceil((i + 1) * height / 6)))
            columns = slice(int(np.floor(j * width / 6)), int(np.ceil((j + 1) * width / 6)))
            np.testing.assert_allclose(
                pooled[:, i, j], images[:, rows, columns].mean(axis=(1, 2)), atol=1e-5
            )


def torch_with(state: dict[str, np.ndarray]) -> SimpleNamespace:
    """PyTorch, as far as it reads files, all of which hold these arrays."""
    tensors = {name: SimpleNamespace(numpy=lambda v=v: v) for name, v in state.items()}
    return SimpleNamespace(load=lambda path, **how: tensors)


@pytest.mark.usefixtures("no_drawing")
def test_converted_weights_load_into_alexnet(
    state_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "alexnet.pth", tmp_path / "alexnet_notop.weights.h5"
    source.touch()
    monkeypatch.setitem(sys.modules, "torch", torch_with(state_dict))
    settings = ConvertAlexNetWeights(state_dict=str(source), out=str(out))
    convert_alexnet_weights(settings)
    assert set(tmp_path.iterdir()) == {source, out}
    model = build_classifier("alexnet", classes=2, image_size=64)
    weights.load_weights(model, "alexnet", str(out))
    for layer, (kernel, bias) in alexnet.from_torch(state_dict).items():
        np.testing.assert_array_equal(model.get_layer(layer).kernel, kernel)
        np.testing.assert_array_equal(model.get_layer(layer).bias, bias)
    with pytest.raises(UserError, match="exists"):
        convert_alexnet_weights(settings)


@pytest.mark.usefixtures("no_drawing")
def test_conversion_of_another_network_raises(
    state_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "x.weights.h5"
    out.parent.mkdir()
    source = tmp_path / "a.pth"
    with pytest.raises(UserError, match="no such file"):
        convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    source.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match="pip install torch"):
            convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    with pytest.raises(UserError, match="must end in"):
        convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out="weights.h5"))
    narrow = {**state_dict, "features.3.weight": state_dict["features.3.weight"][:100]}
    lacking = {k: v for k, v in state_dict.items() if k != "features.8.bias"}
    for state, message in ((narrow, "not torchvision's"), (lacking, r"features\.8\.bias")):
        monkeypatch.setitem(sys.modules, "torch", torch_with(state))
        with pytest.raises(UserError, match=message):
            convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    assert list(out.parent.iterdir()) == []


# ---------------------------------------------------------------------- weights


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


def test_missing_imagenet_weights_raise_instead_of_a_fallback(
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
    with pytest.raises(UserError, match=r"not be fetched \(URL.*--weights FILE.*--weights none"):
        weights.load_weights(model, tiny_backbone, "imagenet")
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="resnet50, vgg16, alexnet"):
        backbones.backbone("vgg19")
    with pytest.raises(UserError, match="at least 64"):
        build_classifier("vgg16", classes=2, image_size=63)


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


# ---------------------------------------------------------------------- classifiers

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


def test_temperature_divides_the_logits(tiny_backbone: str) -> None:
    model = build_classifier(tiny_backbone, classes=3, image_size=64)
    cooled = calibrated(model, 2.5)
    logits = logits_of(model)(RADIOGRAPHS).numpy()
    np.testing.assert_allclose(cooled(RADIOGRAPHS), keras.ops.softmax(logits / 2.5), atol=1e-6)
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


def test_alexnet_builds_in_every_precision_and_size(tmp_path: Path) -> None:
    """Adaptive pooling multiplies by a constant, which needs the dtype of the layer."""
    for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
        inputs = keras.Input((7, 5, 4), dtype="float32")
        keras.config.set_dtype_policy(precision)
        try:
            x = keras.layers.Activation("linear")(inputs)
            pool = keras.Model(inputs, alexnet._adaptive_average_pooling(x, 6))
        finally:
            keras.config.set_dtype_policy("float32")
        pool.save(tmp_path / "pool.keras")
        again = keras.saving.load_model(tmp_path / "pool.keras", compile=False)
        images = torchvision_alexnet.draw((1, 7, 5, 4))
        np.testing.assert_array_equal(again(images), pool(images))


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
