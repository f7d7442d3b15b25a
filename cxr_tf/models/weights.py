"""Weights of the backbones: ImageNet, a file, or a random start."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cxr_tf.config import LARGEST_SEED
from cxr_tf.data.sources.phantoms import FINDINGS, phantom
from cxr_tf.errors import UserError, first_line
from cxr_tf.files import expand_user
from cxr_tf.models.backbones import SMALLEST_SIZE, backbone, backbone_layers
from cxr_tf.models.classifier import build_classifier


def load_weights(model: keras.Model, name: str, weights: str, *, flag: str = "--weights") -> None:
    """Set the weights of the backbone in `model` from `imagenet`, `none`, or a weights file.

    `none` draws He-normal kernels (He et al. 2015), because with Keras's Glorot default the signal
    vanishes in VGG16 without BatchNorm, and scales those of VGG16 with `_normalise_outputs`. A
    file is a `.weights.h5` (or older `.h5`) of the backbone without its classification layer, or a
    `.keras` model of this package with the same backbone. flag: the command's flag, for messages.

    Raises UserError if ImageNet weights do not exist or cannot be downloaded, or if a file does not
    fit; the message names the first layer that differs. Never falls back to random weights.
    """
    if weights == "none":
        _initialise(model, name)
    elif weights == "imagenet":
        _copy(_imagenet(name, flag), model, name)
    else:
        _copy(_from_file(model, name, expand_user(weights)), model, name)


def _initialise(model: keras.Model, name: str) -> None:
    layers = backbone_layers(model, name)
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # With Keras's 0.99 the initial statistics fade over hundreds of steps; short runs have
            # fewer.
            layer.momentum = 0.9
        elif isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(keras.initializers.HeNormal()(layer.kernel.shape))
    # Not with dense layers: AlexNet starts at a scale of 2 anyway, and trained worse when scaled.
    if all(isinstance(x, keras.layers.Conv2D) for x in layers):
        _normalise_outputs(model, layers)


def _normalise_outputs(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> None:
    """Scale kernels and biases so that filter outputs on phantoms have mean 0 and deviation 1.

    The outputs are those before the ReLU, over images and positions: this does once what BatchNorm
    does in each step, and follows Kraehenbuehl et al., "Data-dependent Initializations of
    Convolutional Neural Networks" (ICLR 2016). Without it, VGG16's embeddings have values of
    about a hundred, like the pixels, and are nearly equal for all images, and the logits vary
    wildly in the first steps.
    """
    size = model.input_shape[1]
    seed = LARGEST_SEED + 1  # no data set of phantoms has it, so none contains these images
    # Fewer images if they are large: every position counts, and the first feature maps are large.
    count = int(np.clip(24 * (128 / size) ** 2, 4, 24))
    images = [phantom(FINDINGS[k % 3], seed=seed, patient=k, size=size).image for k in range(count)]
    x = keras.ops.repeat(np.stack(images)[..., None].astype(np.float32), 3, axis=-1)
    tensor = model.input
    for layer in layers:
        x, tensor = keras.Model(tensor, layer.input)(x, training=False), layer.input
        activation, layer.activation = layer.activation, keras.activations.linear
        outputs = np.asarray(keras.ops.cast(layer(x), "float32"))
        layer.activation = activation
        mean, spread = outputs.mean(axis=(0, 1, 2)), outputs.std(axis=(0, 1, 2)) + 1e-6
        layer.kernel.assign(layer.kernel / spread)
        layer.bias.assign(-mean / spread)


def _imagenet(name: str, flag: str) -> keras.Model:
    entry = backbone(name)
    if entry.imagenet is None:
        raise UserError(
            f"Keras has no ImageNet weights for {name}: give {flag} FILE "
            f"({entry.where_to_get}), or {flag} none to train from scratch"
        )
    try:
        return entry.imagenet()
    # Keras raises a bare Exception for a failed download, and ValueError for a bad checksum.
    except Exception as error:
        raise UserError(
            f"the ImageNet weights for {name} could not be downloaded ({first_line(error)}): "
            f"connect to the internet; or put {entry.where_to_get} into ~/.keras/models, where it "
            f"is found automatically; or give the file with {flag} FILE; or train from scratch "
            f"with {flag} none"
        ) from error


def load_keras(path: Path) -> keras.Model:
    """Load an existing .keras file; raise UserError if that fails."""
    if not zipfile.is_zipfile(path):  # Keras would report that the file does not exist
        raise UserError(f"{path} is not a Keras model, or is damaged: copy it again")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded as a Keras model: {first_line(error)}") from error


def _from_file(model: keras.Model, name: str, path: Path) -> keras.Model:
    if not path.is_file():
        raise UserError(f"no such weights file: {path} (or use imagenet or none)")
    size = model.input_shape[1:3]
    if path.suffix == ".keras":
        return load_keras(path)
    reference = _reference(name, (*size, 3))
    # Compared before loading, because Keras only warns about layers that the file lacks.
    if difference := _first_difference(path, reference):
        raise UserError(f"{path} does not fit {name}: {difference}")
    try:
        reference.load_weights(path)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded into {name}: {first_line(error)}") from error
    return reference


def _reference(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Return the bare backbone that weights files are saved from."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, backbone(name).features(inputs), name=name)


def _copy(source: keras.Model, target: keras.Model, name: str) -> None:
    for layer in backbone_layers(target, name):
        try:
            values = source.get_layer(layer.name).get_weights()
        except ValueError:
            raise UserError(
                f"the weights do not fit {name}: they have no layer '{layer.name}'"
            ) from None
        shapes = [v.shape for v in values], [tuple(w.shape) for w in layer.weights]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the weights do not fit {name}: layer '{layer.name}' is {_shape(shapes[0])}, "
                f"expected {_shape(shapes[1])}"
            )
        layer.set_weights(values)


def _first_difference(path: Path, reference: keras.Model) -> str | None:
    """Describe the first layer of a weights file that does not fit; None if all fit."""
    import h5py

    try:
        with h5py.File(path) as file:
            stored = _stored_layers(file, reference)
    except OSError:
        return "not an HDF5 file, or damaged"
    expected = [
        (x.name, [tuple(w.shape) for w in x.weights]) for x in reference.layers if x.weights
    ]
    for (name, shapes), (stored_name, stored_shapes) in zip(expected, stored, strict=False):
        if sorted(shapes) != sorted(stored_shapes):
            return (
                f"first differing layer '{name}': expected {_shape(shapes)}, "
                f"the file has {_shape(stored_shapes)} ('{stored_name}')"
            )
    if len(expected) != len(stored):
        return f"it has {len(stored)} layers with weights, expected {len(expected)}"
    return None


def _stored_layers(file: Any, reference: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Return layer names and weight shapes of an HDF5 weights file, in the reference's order."""
    import h5py

    def shapes(group: h5py.Group | h5py.Dataset) -> list[tuple[int, ...]]:
        if isinstance(group, h5py.Dataset):
            return [group.shape]
        result: list[tuple[int, ...]] = []
        group.visititems(
            lambda _, item: result.append(item.shape) if isinstance(item, h5py.Dataset) else None
        )
        return result

    if "layer_names" in file.attrs:  # the format before Keras 3
        names = [n.decode() if isinstance(n, bytes) else n for n in file.attrs["layer_names"]]
        return [(n, s) for n in names if (s := shapes(file[n]))]
    # Keras 3 numbers layers by class (conv2d, batch_normalization, conv2d_1, ...), so only the
    # reference has the order of the classes.
    group = file.get("layers", file)
    if isinstance(group, h5py.Dataset):  # not a weights file, which the comparison will report
        group = file
    by_class: dict[str, list[str]] = {}
    for name in sorted(group, key=_natural):
        if shapes(group[name]):
            by_class.setdefault(_natural(name)[0], []).append(name)
    layers: list[tuple[str, list[tuple[int, ...]]]] = []
    for layer in reference.layers:
        if layer.weights:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
            waiting = by_class.get(kind, [])
            name = waiting.pop(0) if waiting else ""
            layers.append((name, shapes(group[name])) if name else (f"no more {kind}", []))
    return layers + [(n, shapes(group[n])) for names in by_class.values() for n in names]


def _natural(name: str) -> tuple[str, int]:
    """Return a key that sorts conv2d, conv2d_1, ..., conv2d_10 in the order of their creation."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, 0)


def _shape(shapes: list[tuple[int, ...]]) -> str:
    return " + ".join("x".join(map(str, s)) for s in shapes) or "nothing"


def check_weights(name: str, weights: str) -> None:
    """Raise UserError if weights are not available or do not fit, before a long run starts.

    Loads them into a network for small images: the weights of a backbone fit any image size. The
    flag is that of commands with several backbones, such as --vgg16-weights.
    """
    if weights != "none":
        model = build_classifier(name, classes=2, image_size=SMALLEST_SIZE)
        load_weights(model, name, weights, flag=f"--{name}-weights")
