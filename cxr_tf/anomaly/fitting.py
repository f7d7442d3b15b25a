"""Fit the autoencoder on healthy images; evaluate it after each epoch."""

import dataclasses
import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import VALIDATION_SEED, perturbed_copies, predict_fn
from cxr_tf.anomaly.scoring import known_scores
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data import batches, tf_data
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.data.restoration import opacities
from cxr_tf.models import autoencoder
from cxr_tf.models.lung_appearance import LungAppearanceModel
from cxr_tf.training import checkpoints, optimizer
from cxr_tf.training import epochs as training_epochs

log = logging.getLogger(__name__)


# The mark's cross-entropy counts half of the mean absolute error of what is removed.
LOSS_WEIGHTS = {
    "denoising": {"residual": 1.0, "lesion_mask": 0.5},
    "plain": {"reconstruction": 1.0},
}


def healthy_images(train: ImageDataset) -> np.ndarray:
    """The images that the network may learn from: uint8 [N, S, S, 1], every one healthy."""
    return train.images[train.labels == 0]


def fit(
    network: keras.Model,
    train: np.ndarray,
    judge: "ValidationEvaluator",
    state: checkpoints.TrainingState,
    writer: tf.summary.SummaryWriter,
    settings: TrainAutoencoder,
) -> None:
    """Trains from the state's epoch to the last, one checkpoint an epoch."""
    epochs = settings.epochs
    assert epochs is not None
    batch_size = min(settings.batch_size, len(train))
    steps = batches.steps_per_epoch(len(train), batch_size)
    network.compile(
        optimizer.averaged_adamw(settings.learning_rate, steps=steps * epochs, weight_decay=1e-4),
        loss=losses(settings.model),
        loss_weights=LOSS_WEIGHTS[settings.model],
    )
    outputs = network(tf.zeros([1, *network.input_shape[1:]]), training=False)
    optimizer.build_variables(network, keras.tree.map_structure(tf.zeros_like, outputs))
    if state.epochs_done() >= epochs:
        return
    if state.exists():
        log.info("going on from the checkpoint of epoch %d", state.epochs_done())
        state.load(network)
    network.fit(
        training_batches(train, settings, batch_size, range(state.epochs_done(), epochs)),
        initial_epoch=state.epochs_done(),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            training_epochs.EpochEnd(
                network,
                judge,
                state,
                writer,
                epochs=epochs,
                patience=epochs,
                line=lambda entry: epoch_line(entry, epochs),
            )
        ],
        shuffle=False,
        verbose=0,
    )


def fit_appearance_model(
    train: np.ndarray, kind: type[LungAppearanceModel] = LungAppearanceModel
) -> LungAppearanceModel:
    """What healthy lungs look like in their surroundings; train: healthy, uint8 [N, S, S, 1]."""
    context = kind(train.shape[1])
    context.fit(
        perturbed_copies(train, VALIDATION_SEED + 1),
        opacities.lung_fields(autoencoder.as_network_sees(train, "denoising")),
        coded=2,
    )
    return context


def losses(model: str) -> dict[str, Any]:
    """Mean absolute error of what is removed and cross-entropy of the mark; for the plain network
    the squared error of the reconstruction."""
    if model == "plain":
        return {"reconstruction": keras.losses.MeanSquaredError()}
    return {
        "residual": keras.losses.MeanAbsoluteError(),
        "lesion_mask": keras.losses.BinaryCrossentropy(from_logits=True),
    }


def training_batches(
    train: np.ndarray, settings: TrainAutoencoder, batch_size: int, epochs: range
) -> tf.data.Dataset:
    """What the network learns from: (inputs, targets) as it sees them, from healthy images alone.

    train: uint8 [N, T, T, 1], as the network sees them.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": settings.seed,
        "epochs": epochs,
        "strength": settings.augmentation,
    }
    if settings.model == "denoising":
        return opacities.restoration_batches(train, opacities.lung_fields(train), **common)
    stream = batches.training_batches(train, np.zeros(len(train), np.int64), **common)

    @tf_data.no_autograph
    def to_itself(images: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        standardised = opacities.standardised(images[..., :1])
        return standardised, {"reconstruction": standardised}

    return stream.map(to_itself)


class ValidationEvaluator:
    """Judges the network after every epoch; shows the same reconstructions each time.

    `selection_loss`, by which the epoch is chosen, is the training loss on healthy validation
    images, painted the same way each time. The AUROC on validation is for a person to watch.
    """

    def __init__(
        self,
        network: keras.Model,
        val: ImageDataset,
        settings: TrainAutoencoder,
        writer: tf.summary.SummaryWriter,
    ) -> None:
        # The context is fitted once, and knows nothing of epochs.
        watched = settings.score or known_scores(settings)[0]
        watched = "residual" if watched in ("combined", "appearance") else watched
        model = autoencoder.build_autoencoder(network, watched)
        self._score = predict_fn(model, ("score",))
        self._look = predict_fn(model, ("reconstruction", "anomaly_map"))
        self._network, self._val, self._writer = network, val, writer
        self._losses = losses(settings.model)
        self._loss_weights = LOSS_WEIGHTS[settings.model]
        healthy = autoencoder.as_network_sees(healthy_images(val), settings.model)
        self._batches = list(
            training_batches(
                healthy,
                dataclasses.replace(settings, seed=VALIDATION_SEED),
                min(settings.batch_size, len(healthy)),
                range(1),
            )
        )
        sick = np.flatnonzero(val.labels == 1)
        self._shown = np.concatenate([np.flatnonzero(val.labels == 0)[:3], sick[:3]])

    def __call__(self, epoch: int) -> dict[str, float]:
        """{epoch, val_loss, val_auroc, selection_loss} of the network as it stands."""
        values = []
        for inputs, targets in self._batches:
            outputs = self._network(inputs, training=False)
            values.append(
                sum(
                    self._loss_weights[key] * float(loss(targets[key], outputs[key]))
                    for key, loss in self._losses.items()
                )
            )
        loss = float(np.mean(values))
        scores = self._score(self._val.images)["score"]
        if not (np.isfinite(loss) and np.isfinite(scores).all()):
            raise FloatingPointError("the outputs are not finite")
        self._show(epoch, scores)
        sick = self._val.labels == 1
        area = metrics.detection_scores(sick, scores, threshold=np.inf)["auroc"]
        return {"epoch": epoch, "val_loss": loss, "val_auroc": area, "selection_loss": loss}

    def _show(self, epoch: int, scores: np.ndarray) -> None:
        rows = self._shown
        outputs = self._look(self._val.images[rows])
        maps = outputs["anomaly_map"]
        pictures = [
            self._val.images[rows, ..., 0].astype(np.float32) / 255,
            np.clip(outputs["reconstruction"][..., 0] / 255, 0, 1),
            maps / max(float(maps.max()), 1e-6),
        ]
        with self._writer.as_default(step=epoch):
            tf.summary.image(
                "image, reconstruction, anomaly map",
                np.concatenate(pictures, axis=2)[..., None],
                max_outputs=len(rows),
            )
            for label, kind in enumerate(self._val.classes):
                own = scores[self._val.labels == label]
                if len(own):
                    tf.summary.histogram(f"score/{kind}", own)


def epoch_line(entry: dict[str, float], epochs: int) -> str:
    """One line about an epoch."""
    return (
        f"epoch {entry['epoch']}/{epochs}: loss {entry['train_loss']:.4f}, on healthy validation "
        f"{entry['val_loss']:.4f}; AUROC on validation {entry['val_auroc']:.4f}"
    )
