"""Autoencoders of chest radiographs, and the anomaly scores on top of them.

    network = build_network("denoising", image_size=224)     # the trainable part
    model = build_autoencoder(network, "residual")           # [N, S, S, 1] in 0..255 -> ...

`denoising` is a small U-Net that predicts the residual to subtract from an image to make it look
healthy, and a lesion mask. Its input has half the image size, because opacities are large and the
lung appearance model covers fine detail; and it is in local contrast, which hardly changes with
exposure and framing. `plain` compresses the image to a code of 128 numbers.
"""

import keras
import numpy as np

from cxr_tf.data.restoration.local_contrast import WINDOW, gaussian
from cxr_tf.errors import UserError
from cxr_tf.models.contrast_layers import Blur, LocalContrast, Without
from cxr_tf.models.lung_appearance import LungAppearanceModel

# The kind of network that each score belongs to; the first score of a kind is its default.
SCORES = {
    "combined": "denoising",
    "appearance": "denoising",
    "residual": "denoising",
    "lesion_mask": "denoising",
    "mse": "plain",
    "ssim": "plain",
}

# Factor by which the side of the image exceeds the side of the network's input.
SHRUNK = {"denoising": 2, "plain": 1}

# The score is the mean over the highest tenth of the map: a lesion that fills a tenth of the image
# counts in full, and noise in the rest does not count.
SCORED_SHARE = 0.10

# Deviations from the lung appearance model below one standard deviation count as zero, and those
# above seven are clipped, so that a metal button does not dominate the score.
LEAST_EXCESS, MOST_EXCESS = 1.0, 6.0

# Added to the residual, in standard deviations of the local contrast, before its logarithm.
LEAST_RESIDUAL = 0.003

CODE = 128


def scores_of(kind: str) -> list[str]:
    """Return the scores that a kind of network has, its default first."""
    return [score for score, network in SCORES.items() if network == kind]


def build_network(kind: str, image_size: int) -> keras.Model:
    """Build the trainable part: inputs [N, T, T, 1] -> a dict of outputs, float32.

    denoising: T is half of `image_size`; local contrast -> {"residual": [N, T, T, 1] in the same
    unit, "lesion_mask": logits [N, T, T, 1]}.
    plain: T is `image_size`; standardised images -> {"reconstruction": [N, T, T, 1], standardised}.
    Raises UserError for an unsupported size.
    """
    check_size(kind, image_size)
    side = image_size // SHRUNK[kind]
    images = keras.Input((side, side, 1), name="seen")
    outputs = _denoising(images) if kind == "denoising" else _plain(images)
    return keras.Model(images, outputs, name=kind)


def check_size(kind: str, image_size: int) -> None:
    """Raise UserError if the side of the network's input is below 64 or not a multiple of 16."""
    times = SHRUNK[kind]
    if image_size < 64 * times or image_size % (16 * times):
        raise UserError(
            f"--image-size of the {kind} autoencoder must be a multiple of {16 * times}, at "
            f"least {64 * times}, not {image_size}"
        )


def as_network_sees(images: np.ndarray, kind: str) -> np.ndarray:
    """Downscale images uint8 [N, S, S, 1] to the network's input size, uint8 [N, T, T, 1]."""
    times, (count, size) = SHRUNK[kind], images.shape[:2]
    squares = images.reshape(count, size // times, times, size // times, times, 1)
    sums = squares.sum(axis=(2, 4), dtype=np.uint16)
    return ((sums + times**2 // 2) // times**2).astype(np.uint8)


def build_autoencoder(network: keras.Model, score: str) -> keras.Model:
    """Build the full model: images [N, S, S, 1] in 0..255 -> reconstruction, anomaly_map, score.

    reconstruction: float32 [N, S, S, 1] in grey levels of the input. anomaly_map: float32
    [N, S, S], 0 where nothing is abnormal; that of the denoising network is blurred over half of
    the contrast window, because contrast rises more at the edge of an opacity than inside it.
    score: float32 [N], the mean of the map before blurring and upsampling; for the denoising
    network, the mean over the highest tenth of the map.

    - residual: the predicted residual, in standard deviations of the local contrast;
    - lesion_mask: the predicted probability of a lesion;
    - mse: squared error of the standardised image;
    - ssim: 1 - SSIM (Wang et al. 2004), Gaussian window of 11 pixels, halved so that it is in 0..1.
    """
    images, shrunk = _inputs(network)
    if SCORES[score] == "denoising":
        outputs = network(LocalContrast()(shrunk))
        error = (
            keras.ops.relu(outputs["residual"])
            if score == "residual"
            else keras.ops.sigmoid(outputs["lesion_mask"])
        )
        scored = _highest_tenth(error)
        error = Blur(WINDOW / 2)(error)
        reconstruction = _denoised(images, shrunk, outputs["residual"])
    else:
        mean = keras.ops.mean(shrunk, axis=(1, 2, 3), keepdims=True)
        spread = keras.ops.std(shrunk, axis=(1, 2, 3), keepdims=True) + 1.0
        standardised = (shrunk - mean) / spread
        restored = network(standardised)["reconstruction"]
        error = (
            keras.ops.square(standardised - restored)
            if score == "mse"
            else (1 - structural_similarity(standardised, restored)) / 2
        )
        scored = keras.ops.mean(error, axis=(1, 2, 3))
        reconstruction = images + (restored - standardised) * spread
    return keras.Model(
        images,
        {
            "reconstruction": reconstruction,
            "anomaly_map": keras.ops.squeeze(_enlarged(error, images), -1),
            "score": scored,
        },
        name="autoencoder",
    )


def build_combined(
    network: keras.Model,
    appearance: LungAppearanceModel,
    healthy: np.ndarray,
    score: str = "combined",
) -> keras.Model:
    """Combine the denoising network and the lung appearance model in one score.

    healthy: uint8 [N, S, S, 1], healthy images that neither model was fitted to; they determine the
    scale. Inputs and outputs are those of `build_autoencoder`. The score is the mean of four errors
    (the residual, lungs brighter than expected, missing fine and coarse detail), each in standard
    deviations of the healthy images: a score of 0 is the healthy mean. The map is the mean of the
    four maps, each divided by its typical value on healthy images. The score `appearance` uses the
    three errors other than the residual.
    """
    images, shrunk = _inputs(network)
    residual = network(LocalContrast()(shrunk))["residual"]
    maps, amounts, levels = [], [], []
    if score == "combined":
        error = keras.ops.relu(residual)
        maps.append(_enlarged(Blur(WINDOW / 2)(error), images))
        levels.append(_highest_tenth(error) + LEAST_RESIDUAL)
        # Logarithmic, because the residual of most healthy images is almost zero, and that of some
        # contains a rib.
        amounts.append(keras.ops.log(levels[-1]))
    excess = keras.ops.clip(appearance(images) - LEAST_EXCESS, 0.0, MOST_EXCESS)
    inside = keras.ops.sum(appearance.region) + 1e-6
    for k in range(excess.shape[-1]):
        error = excess[..., k : k + 1]
        maps.append(_enlarged(error, images))
        levels.append(keras.ops.sum(error, axis=(1, 2, 3)) / inside + 0.05)
        # Square root, so that diffuse haze counts as much as a dense spot.
        amounts.append(keras.ops.sum(keras.ops.sqrt(error), axis=(1, 2, 3)) / inside)
    joined = [keras.ops.stack(values, axis=1) for values in (amounts, levels)]
    measured, typical = (
        np.asarray(x) for x in keras.Model(images, joined).predict(healthy, verbose=0)
    )
    scale = keras.layers.Normalization(
        mean=measured.mean(axis=0),
        variance=np.maximum(measured.std(axis=0), 0.05) ** 2,
        name="healthy_scale",
    )
    multiples = [m / float(np.median(t)) for m, t in zip(maps, typical.T, strict=True)]
    return keras.Model(
        images,
        {
            "reconstruction": _denoised(images, shrunk, residual),
            "anomaly_map": keras.ops.squeeze(sum(multiples) / len(multiples), -1),
            "score": keras.ops.mean(scale(joined[0]), axis=1),
        },
        name="autoencoder",
    )


def _inputs(network: keras.Model) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return the input in 0..255, and the images downscaled to the network's input size."""
    times, side = SHRUNK[network.name], network.input_shape[1]
    images = keras.Input((side * times, side * times, 1), name="images")
    return images, keras.ops.average_pool(images, times) if times > 1 else images


def _denoised(
    images: keras.KerasTensor, shrunk: keras.KerasTensor, residual: keras.KerasTensor
) -> keras.KerasTensor:
    """Subtract the residual from the images, in grey levels, without changing fine detail.

    Only a part of an opacity is subtracted, because the residual is a difference in contrast.
    """
    return images - _enlarged(shrunk - Without()(shrunk, residual), images)


def _enlarged(x: keras.KerasTensor, images: keras.KerasTensor) -> keras.KerasTensor:
    """Upsample a map bilinearly to the size of the images."""
    times = images.shape[1] // x.shape[1]
    return keras.layers.UpSampling2D(times, interpolation="bilinear")(x) if times > 1 else x


def _highest_tenth(error: keras.KerasTensor) -> keras.KerasTensor:
    pixels = int(error.shape[1] * error.shape[2])
    flat = keras.ops.reshape(error, (-1, pixels))
    return keras.ops.mean(
        keras.ops.top_k(flat, int(SCORED_SHARE * pixels), sorted=False)[0], axis=1
    )


def structural_similarity(first: keras.KerasTensor, second: keras.KerasTensor) -> keras.KerasTensor:
    """Return the SSIM map [N, S, S, 1] of two standardised images.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    equation 13, with a range of 4 standard deviations, and borders repeated so that the map is as
    large as the image (`tf.image.ssim` returns one number per image).
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
    # With Keras's momentum of 0.99 the statistics would still contain the start of a short run;
    # with 0.9 they would cover ten batches, and the score would vary from epoch to epoch.
    x = keras.layers.BatchNormalization(momentum=0.97)(x)
    return keras.layers.Activation("relu")(x)


def _denoising(x: keras.KerasTensor, width: int = 32) -> dict[str, keras.KerasTensor]:
    # At half the resolution from the first layer on: the finest detail is noise here, and would
    # take half of the computation.
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
    return {"residual": x[..., :1], "lesion_mask": x[..., 1:]}


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
