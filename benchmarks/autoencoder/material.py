"""The data and scores that all variants share."""

import functools
import time
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import CompareAutoencoders
from cxr_tf.anomaly import fitting, perturbed_copies, scoring
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data import batches as data_batches
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.data.restoration import opacities
from cxr_tf.errors import UserError
from cxr_tf.models import autoencoder
from cxr_tf.models.lung_appearance import LungAppearanceModel
from cxr_tf.training import optimizer

DEFAULT, NEXT_SEED = "default", "the next seed"


@dataclass(frozen=True)
class Row:
    """Anomaly scores of the validation images, float32 [N], and the seconds of training.

    alone: the score of the variant; joined: its combination with the lung appearance model.
    """

    alone: np.ndarray | None
    joined: np.ndarray | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Material:
    """Data that all variants are trained and evaluated on.

    healthy: the healthy training images; seen, lungs: uint8 [N, T, T, 1], the network's inputs for
    these images, and their lung masks; context: the lung appearance model.
    """

    settings: CompareAutoencoders
    healthy: ImageDataset
    seen: np.ndarray
    lungs: np.ndarray
    val: ImageDataset
    context: LungAppearanceModel

    @property
    def epochs(self) -> int:
        """Number of epochs for which a network is trained."""
        assert self.settings.epochs is not None
        return self.settings.epochs

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """The images for which alternative errors are computed, float32 [M, T, T, 1].

        First the validation images, then perturbed copies of the healthy ones, which determine the
        scale of a combined score; all have the size of the network's input.
        """
        healthy = perturbed_copies.perturbed_copies(
            fitting.healthy_images(self.val), perturbed_copies.VALIDATION_SEED
        )
        images = np.concatenate([self.val.images, *healthy])
        # Pooling, without rounding to grey levels.
        pooled = [tf.nn.avg_pool2d(x.astype(np.float32), 2, 2, "VALID") for x in batches(images)]
        return np.concatenate(pooled)

    @functools.cached_property
    def context_score(self) -> np.ndarray:
        """The score of the lung appearance model for the validation images, float32 [N]."""
        size = self.val.images.shape[1]
        return self.score(autoencoder.build_network("denoising", size), "appearance")

    @property
    def sick(self) -> np.ndarray:
        """Whether each validation image shows pneumonia, bool [N]."""
        return self.val.labels == 1

    def score(self, network: keras.Model, name: str) -> np.ndarray:
        """Return the scores of the validation images, computed as in `train_autoencoder.py`."""
        healthy = fitting.healthy_images(self.val)
        model = scoring.scoring_model(network, self.context, healthy, name)
        return perturbed_copies.predict_fn(model, ("score",))(self.val.images)["score"]

    def row(self, network: keras.Model, seconds: float = 0.0) -> Row:
        """Return the residual and the combined score of a network."""
        return Row(self.score(network, "residual"), self.score(network, "combined"), seconds)

    def measured(
        self,
        amounts: np.ndarray,
        seconds: float = 0.0,
        *,
        least: float = autoencoder.LEAST_RESIDUAL,
    ) -> Row:
        """Return the row of an error measure that replaces the residual in the combined score.

        amounts: the non-negative errors of the images `shown`, float [M]; least: is added before
        the logarithm is taken, so that differences between much smaller errors do not count.
        """
        count = len(self.sick)
        logarithms = np.log(amounts + least)
        healthy = logarithms[count:]
        deviations = (logarithms[:count] - healthy.mean()) / max(float(healthy.std()), 0.05)
        return Row(amounts[:count], (deviations + 3 * self.context_score) / 4, seconds)


def make_material(
    settings: CompareAutoencoders, healthy: ImageDataset, val: ImageDataset
) -> Material:
    """Prepare the data that the variants share, at any image size."""
    seen = autoencoder.as_network_sees(healthy.images, "denoising")
    context = fitting.fit_appearance_model(healthy.images)
    return Material(settings, healthy, seen, opacities.lung_fields(seen), val, context)


def trained(
    material: Material,
    images: np.ndarray,
    lungs: np.ndarray,
    *,
    seed: int | None = None,
    epochs: int | None = None,
    pair: opacities.Pair | None = None,
) -> tuple[keras.Model, list[np.ndarray], float]:
    """Train a network; return it, its last weights before averaging, and the seconds.

    images, lungs: uint8 [N, T, T, 1]. The network is trained as in `anomaly.fitting.fit`, but
    without the selection of an epoch.
    """
    settings, started = material.settings, time.perf_counter()
    seed = settings.seed if seed is None else seed
    epochs = material.epochs if epochs is None else epochs
    keras.utils.set_random_seed(seed)
    network = autoencoder.build_network("denoising", 2 * images.shape[1])
    batch_size = min(settings.batch_size, len(images))
    steps = data_batches.steps_per_epoch(len(images), batch_size)
    network.compile(
        optimizer.averaged_adamw(
            TrainAutoencoder.learning_rate, steps=steps * epochs, weight_decay=1e-4
        ),
        loss=fitting.losses("denoising"),
        loss_weights=fitting.LOSS_WEIGHTS["denoising"],
    )
    weights: list[list[np.ndarray]] = []
    network.fit(
        opacities.restoration_batches(
            images, lungs, batch_size=batch_size, seed=seed, epochs=range(epochs), pair=pair
        ),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            # At its end, `fit` replaces the weights with their averages.
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: weights.append(network.get_weights())
            )
        ],
        shuffle=False,
        verbose=0,
    )
    if not all(np.isfinite(w).all() for w in network.get_weights()):
        raise UserError("the trained weights of a network are not finite; try another --seed")
    return network, weights[-1], time.perf_counter() - started


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Split images into batches of the size in which autoencoders are evaluated."""
    return np.split(images, range(perturbed_copies.BATCH, len(images), perturbed_copies.BATCH))
