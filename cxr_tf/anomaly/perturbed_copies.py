"""Perturbed copies of validation images, and what an autoencoder predicts for them."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.acquisition import shifts
from cxr_tf.training import inference

# Images uint8 [N, S, S, 1] -> some outputs of an autoencoder, by name.
PredictFn = Callable[[np.ndarray], dict[str, np.ndarray]]

# Images per batch.
BATCH = 32

# Seed of the synthetic opacities in validation images: fixed, so that every epoch and every run is
# evaluated on the same ones.
VALIDATION_SEED = 20_002

# Seed of the perturbed copies that the threshold is chosen on; it differs from that of the copies
# that set the scale of the score.
THRESHOLD_SEED = VALIDATION_SEED + 2

# Functions of images uint8 [N, S, S, 1] and a seed: the images unchanged, with another exposure,
# and as from another scanner.
PERTURBED_COPIES: tuple[Callable[[np.ndarray, int], np.ndarray], ...] = (
    lambda images, seed: images,
    shifts.perturb_exposure,
    shifts.perturb_scanner,
)


def perturbed_copies(healthy: np.ndarray, seed: int) -> np.ndarray:
    """Return each image unchanged, with another exposure and another scanner: [3, N, S, S, 1].

    They keep the scores of healthy images stable when the scanner changes. Without them, all
    healthy images exceed the threshold with more noise, and half of them with a higher exposure.
    """
    return np.stack([change(healthy, seed) for change in PERTURBED_COPIES])


def predict_fn(model: keras.Model, outputs: Sequence[str]) -> PredictFn:
    """Return a function from uint8 [N, S, S, 1] to some outputs of `build_autoencoder`.

    It is traced once. A map is as large as its image in float32: request maps of few images only.
    """
    function = inference.compiled(keras.Model(model.input, {k: model.output[k] for k in outputs}))

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = [
            function(tf.constant(images[start : start + BATCH], tf.float32))
            for start in range(0, len(images), BATCH)
        ]
        return {k: np.concatenate([batch[k] for batch in batches]) for k in outputs}

    return predict
