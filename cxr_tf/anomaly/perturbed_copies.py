"""Perturbed copies of images, and functions that predict with an autoencoder."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.acquisition import shifts
from cxr_tf.training import inference

# A function from images uint8 [N, S, S, 1] to selected outputs of an autoencoder, by name.
PredictFn = Callable[[np.ndarray], dict[str, np.ndarray]]

# Images per batch.
BATCH = 32

# Seed of the synthetic opacities in validation images: fixed, so that every epoch and every run is
# evaluated on the same opacities.
VALIDATION_SEED = 20_002

# Seed of the perturbed copies on which the threshold is chosen; it differs from the seed of the
# copies that set the scale of the score.
THRESHOLD_SEED = VALIDATION_SEED + 2

# Functions of images uint8 [N, S, S, 1] and a seed: the first returns the images unchanged, the
# second perturbs the exposure, and the third imitates a different scanner.
PERTURBED_COPIES: tuple[Callable[[np.ndarray, int], np.ndarray], ...] = (
    lambda images, seed: images,
    shifts.perturb_exposure,
    shifts.perturb_scanner,
)


def perturbed_copies(healthy: np.ndarray, seed: int) -> np.ndarray:
    """Return the images and their two perturbed copies (`PERTURBED_COPIES`): [3, N, S, S, 1].

    Models fitted to the copies give healthy images stable scores when the scanner changes. Without
    the copies, all healthy images exceed the threshold under added noise, and half of them under a
    higher exposure.
    """
    return np.stack([change(healthy, seed) for change in PERTURBED_COPIES])


def predict_fn(model: keras.Model, outputs: Sequence[str]) -> PredictFn:
    """Return a function from images uint8 [N, S, S, 1] to the named outputs of an autoencoder.

    model: from `build_autoencoder`. The function is traced once. A map takes as much memory as its
    image in float32, so request maps of a few images only.
    """
    function = inference.compiled(keras.Model(model.input, {k: model.output[k] for k in outputs}))

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = [
            function(tf.constant(images[start : start + BATCH], tf.float32))
            for start in range(0, len(images), BATCH)
        ]
        return {k: np.concatenate([batch[k] for batch in batches]) for k in outputs}

    return predict
