"""AlexNet gives the same logits as torchvision's."""

from pathlib import Path

import keras
import numpy as np
import pytest
import torchvision_alexnet

from cxr_tf.models import alexnet


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


def test_alexnet_builds_in_every_precision_and_size(tmp_path: Path) -> None:
    """Adaptive pooling multiplies by a constant, which must have the dtype of the layer."""
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
