"""Perturbed copies of validation images, and what an autoencoder predicts for them."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data import acquisition_shifts
from cxr_tf.training import inference

# Images uint8 [N, S, S, 1] -> some outputs of an autoencoder, by name.
PredictFn = Callable[[np.ndarray], dict[str, np.ndarray]]

# Images that an autoencoder looks at together.
BATCH = 32

# Seed of the paint on validation images: fixed, so that every epoch and every run is judged alike.
VALIDATION_SEED = 20_002

# Seed of the versions of validation images that the threshold is read off; others than those that
# set the scale of the score.
THRESHOLD_SEED = VALIDATION_SEED + 2

# Images uint8 [N, S, S, 1] and a seed -> the same as they are, under another exposure, and from
# another scanner.
PERTURBED_COPIES: tuple[Callable[[np.ndarray, int], np.ndarray], ...] = (
    lambda images, seed: images,
    acquisition_shifts.perturb_exposure,
    acquisition_shifts.perturb_scanner,
)


def perturbed_copies(healthy: np.ndarray, seed: int) -> np.ndarray:
    """Each image as it is, under another exposure and from another scanner: [3, N, S, S, 1].

    So that the score of healthy images stays where it is when the scanner changes. Without, all
    of them come to lie above the threshold where there is more noise, and half of them where there
    is more light.
    """
    return np.stack([change(healthy, seed) for change in PERTURBED_COPIES])


def predict_fn(model: keras.Model, outputs: Sequence[str]) -> PredictFn:
    """Some outputs of `build_autoencoder`, as a function of uint8 [N, S, S, 1]; traced once.

    A map is as large as its image in float32: ask for those of a few images, or of phantoms.
    """
    function = inference.compiled(keras.Model(model.input, {k: model.output[k] for k in outputs}))

    def ask(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = [
            function(tf.constant(images[start : start + BATCH], tf.float32))
            for start in range(0, len(images), BATCH)
        ]
        return {k: np.concatenate([batch[k] for batch in batches]) for k in outputs}

    return ask
