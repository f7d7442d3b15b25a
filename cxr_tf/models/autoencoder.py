"""Autoencoders of chest radiographs, and the anomaly scores on top of them.

    network = build_network("restoring", image_size=112)     # what is trained
    model = build_autoencoder(network, "removed")            # [N, S, S, 1] in 0..255 -> ...

`restoring` is a small U-shaped network that gives back what has to be taken away from an image to
make it a healthy one, and a mark where. `plain` squeezes the image through a code of 128 numbers.
"""

import keras
import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.models.context import GRID, HealthyContext, gaussian

# Score -> the kind of network that it belongs to; the first of a kind is its default.
SCORES = {
    "combined": "restoring",
    "removed": "restoring",
    "mark": "restoring",
    "mse": "plain",
    "ssim": "plain",
}

# The score is the mean of the map over its highest tenth: a lesion of a tenth of the image counts
# in full, and the noise of all the rest does not.
SCORED_SHARE = 0.10

# Within one standard deviation of what healthy surroundings let expect nothing is in excess; above
# seven nothing is added, so that a metal button does not decide.
LEAST_EXCESS, MOST_EXCESS = 1.0, 6.0

CODE = 128


def scores_of(kind: str) -> list[str]:
    """The scores that a kind of network can be judged by, its default first."""
    return [score for score, network in SCORES.items() if network == kind]


def build_network(kind: str, image_size: int) -> keras.Model:
    """The trainable part: standardised images [N, S, S, 1] -> its outputs, float32.

    restoring: {"removed": [N, S, S, 1] in standard deviations, "mark": logits [N, S, S, 1]}.
    plain: {"reconstruction": [N, S, S, 1] in standard deviations}.
    Raises UserError for a size that is no multiple of 16, or below 64.
    """
    if image_size < 64 or image_size % 16:
        raise UserError(f"--image-size must be a multiple of 16 from 64 on, not {image_size}")
    images = keras.Input((image_size, image_size, 1), name="standardised")
    outputs = _restoring(images) if kind == "restoring" else _plain(images)
    return keras.Model(images, outputs, name=kind)


def build_autoencoder(network: keras.Model, score: str) -> keras.Model:
    """The whole: images [N, S, S, 1] in 0..255 -> reconstruction, anomaly_map, score.

    reconstruction: float32 [N, S, S, 1] in grey levels of the input. anomaly_map: float32
    [N, S, S], 0 where nothing fails. score: float32 [N], the mean of the map's highest tenth for
    the restoring network, else of the whole map.

    - removed: what the network takes away, in standard deviations of the image;
    - mark: the probability that something is to be taken away;
    - mse: squared error of the standardised image;
    - ssim: 1 - SSIM (Wang et al. 2004), Gaussian window of 11 pixels, halved to lie in 0..1.
    """
    images, standardised, to_grey = _standardised_input(network)
    outputs = network(standardised)
    if SCORES[score] == "restoring":
        restored = standardised - outputs["removed"]
        error = (
            keras.ops.relu(outputs["removed"])
            if score == "removed"
            else keras.ops.sigmoid(outputs["mark"])
        )
        scored = _highest_tenth(error)
    else:
        restored = outputs["reconstruction"]
        error = (
            keras.ops.square(standardised - restored)
            if score == "mse"
            else (1 - structural_similarity(standardised, restored)) / 2
        )
        scored = keras.ops.mean(error, axis=(1, 2, 3))
    return keras.Model(
        images,
        {
            "reconstruction": to_grey(restored),
            "anomaly_map": keras.ops.squeeze(error, -1),
            "score": scored,
        },
        name="autoencoder",
    )


def build_combined(
    network: keras.Model, context: HealthyContext, healthy: np.ndarray
) -> keras.Model:
    """The restoring network and the context of healthy lungs as one score.

    healthy: uint8 [N, S, S, 1], healthy images that neither was fitted to; they set the scale. Same
    inputs and outputs as `build_autoencoder`. Three errors (what is removed, lungs brighter than
    expected, fine detail that is missing), each as a logarithm in standard deviations of the
    healthy images, averaged: a score of 0 is the healthy mean. The map is the mean of the three
    maps, each as a multiple of what is typical of healthy images.
    """
    images, standardised, to_grey = _standardised_input(network)
    removed = network(standardised)["removed"]
    maps = [keras.ops.relu(removed)]
    amounts = [_highest_tenth(maps[0]) + 0.003]
    size = network.input_shape[1]
    for error in context(standardised):
        excess = keras.ops.clip(error - LEAST_EXCESS, 0.0, MOST_EXCESS)
        inside = keras.ops.sum(context.region)
        amounts.append(keras.ops.sum(excess, axis=(1, 2)) / (inside + 1e-6) + 0.05)
        maps.append(
            keras.layers.UpSampling2D(size // GRID, interpolation="bilinear")(excess[..., None])
        )
    logs = keras.ops.log(keras.ops.stack(amounts, axis=1))
    measured = np.asarray(keras.Model(images, logs).predict(healthy.astype(np.float32), verbose=0))
    mean, spread = measured.mean(axis=0), np.maximum(measured.std(axis=0), 0.05)
    scale = keras.layers.Normalization(mean=mean, variance=spread**2, name="healthy_scale")
    multiples = [m / float(np.exp(typical)) for m, typical in zip(maps, mean, strict=True)]
    return keras.Model(
        images,
        {
            "reconstruction": to_grey(standardised - removed),
            "anomaly_map": keras.ops.squeeze(sum(multiples) / len(multiples), -1),
            "score": keras.ops.mean(scale(logs), axis=1),
        },
        name="autoencoder",
    )


def _standardised_input(network: keras.Model) -> tuple:
    """Input in 0..255, the same standardised, and the function that turns such back to grey."""
    images = keras.Input(network.input_shape[1:], name="images")
    mean = keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
    spread = keras.ops.std(images, axis=(1, 2, 3), keepdims=True) + 1.0
    return images, (images - mean) / spread, lambda x: x * spread + mean


def _highest_tenth(error: keras.KerasTensor) -> keras.KerasTensor:
    pixels = int(error.shape[1] * error.shape[2])
    flat = keras.ops.reshape(error, (-1, pixels))
    return keras.ops.mean(
        keras.ops.top_k(flat, int(SCORED_SHARE * pixels), sorted=False)[0], axis=1
    )


def structural_similarity(first: keras.KerasTensor, second: keras.KerasTensor) -> keras.KerasTensor:
    """SSIM of each pixel's surroundings, [N, S, S, 1], of standardised images.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    equation 13, with a range of 4 standard deviations, and borders repeated so that the map is as
    large as the image (`tf.image.ssim` gives one number for an image).
    """
    c1, c2 = (0.01 * 4) ** 2, (0.03 * 4) ** 2
    mean1, mean2 = _blurred(first), _blurred(second)
    variance1 = _blurred(first * first) - mean1 * mean1
    variance2 = _blurred(second * second) - mean2 * mean2
    covariance = _blurred(first * second) - mean1 * mean2
    return ((2 * mean1 * mean2 + c1) * (2 * covariance + c2)) / (
        (mean1 * mean1 + mean2 * mean2 + c1) * (variance1 + variance2 + c2)
    )


def _blurred(x: keras.KerasTensor) -> keras.KerasTensor:
    return gaussian(x, radius=5, sigma=1.5)


def _block(x: keras.KerasTensor, filters: int, size: int = 3, stride: int = 1) -> keras.KerasTensor:
    x = keras.layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
    # Keras's momentum of 0.99 would still remember the start of a short run; at 0.9 the statistics
    # of the last ten batches would decide, and the score would swing from epoch to epoch.
    x = keras.layers.BatchNormalization(momentum=0.97)(x)
    return keras.layers.Activation("relu")(x)


def _restoring(x: keras.KerasTensor, width: int = 32) -> dict[str, keras.KerasTensor]:
    # At half the resolution throughout: the finest detail is noise to this job, and half the work.
    x = _block(x, width, size=5, stride=2)
    skipped = []
    for filters in (width, 3 * width // 2, 2 * width):
        x = _block(_block(x, filters), filters)
        skipped.append((x, filters))
        x = keras.layers.MaxPooling2D()(x)
    for _ in range(3):
        x = _block(x, 3 * width)
    for skip, filters in reversed(skipped):
        x = keras.layers.UpSampling2D()(x)
        x = keras.layers.Concatenate()([x, skip])
        x = _block(_block(x, filters), filters)
    x = keras.layers.UpSampling2D()(x)
    x = keras.layers.Conv2D(2, 3, padding="same", dtype="float32")(x)
    return {"removed": x[..., :1], "mark": x[..., 1:]}


def _plain(x: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    for filters in (16, 32, 64, 64):
        x = _block(x, filters, stride=2)
    shape = x.shape[1:]
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(CODE, name="code")(x)
    x = keras.layers.Dense(int(shape[0] * shape[1] * shape[2]), activation="relu")(x)
    x = keras.layers.Reshape(shape)(x)
    for filters in (64, 32, 16, 16):
        x = _block(keras.layers.UpSampling2D()(x), filters)
    return {"reconstruction": keras.layers.Conv2D(1, 3, padding="same", dtype="float32")(x)}
