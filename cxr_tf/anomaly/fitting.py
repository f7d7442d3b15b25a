"""Fit the autoencoder on healthy images; evaluate it after each epoch."""

import dataclasses
import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import VALIDATION_SEED, perturbed_copies, predict_fn
from cxr_tf.anomaly.resolved import ResolvedAutoencoder
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


# The cross-entropy of the lesion mask has half the weight of the absolute error of the residual.
LOSS_WEIGHTS = {
    "denoising": {"residual": 1.0, "lesion_mask": 0.5},
    "plain": {"reconstruction": 1.0},
}


def healthy_images(train: ImageDataset) -> np.ndarray:
    """Return the healthy images, uint8 [N, S, S, 1]; the network is trained on no others."""
    return train.images[train.labels == 0]


def fit(
    network: keras.Model,
    train: np.ndarray,
    evaluate: "ValidationEvaluator",
    state: checkpoints.TrainingState,
    writer: tf.summary.SummaryWriter,
    settings: ResolvedAutoencoder,
) -> None:
    """Train from the epoch of `state` to the last; save a checkpoint after each."""
    epochs = settings.epochs
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
        log.info("resuming from the checkpoint of epoch %d", state.epochs_done())
        state.load(network)
    network.fit(
        training_batches(train, settings, batch_size, range(state.epochs_done(), epochs)),
        initial_epoch=state.epochs_done(),
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            training_epochs.EpochEnd(
                network,
                evaluate,
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
    """Fit the lung appearance model to healthy images, uint8 [N, S, S, 1]."""
    appearance = kind(train.shape[1])
    appearance.fit(
        perturbed_copies(train, VALIDATION_SEED + 1),
        opacities.lung_fields(autoencoder.as_network_sees(train, "denoising")),
        coded=2,
    )
    return appearance


def losses(model: str) -> dict[str, Any]:
    """Return the loss of each output of a network, by name."""
    if model == "plain":
        return {"reconstruction": keras.losses.MeanSquaredError()}
    return {
        "residual": keras.losses.MeanAbsoluteError(),
        "lesion_mask": keras.losses.BinaryCrossentropy(from_logits=True),
    }


def training_batches(
    train: np.ndarray, settings: TrainAutoencoder, batch_size: int, epochs: range
) -> tf.data.Dataset:
    """Return the training batches (inputs, targets) of some epochs, made from healthy images.

    train: uint8 [N, T, T, 1], from `as_network_sees`.
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
    """Score the network after every epoch, and draw the same reconstructions each time.

    `selection_loss`, by which the epoch is chosen, is the training loss on healthy validation
    images with fixed synthetic opacities. The AUROC on validation is for information only.
    """

    def __init__(
        self,
        network: keras.Model,
        val: ImageDataset,
        settings: TrainAutoencoder,
        writer: tf.summary.SummaryWriter,
    ) -> None:
        # The appearance model is not trained by epochs, so the residual stands for its scores.
        score = settings.score or known_scores(settings)[0]
        score = "residual" if score in ("combined", "appearance") else score
        model = autoencoder.build_autoencoder(network, score)
        self._predict_score = predict_fn(model, ("score",))
        self._predict_maps = predict_fn(model, ("reconstruction", "anomaly_map"))
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
        """Return {epoch, val_loss, val_auroc, selection_loss} of the network."""
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
        scores = self._predict_score(self._val.images)["score"]
        if not (np.isfinite(loss) and np.isfinite(scores).all()):
            raise FloatingPointError("the outputs are not finite")
        self._draw(epoch, scores)
        sick = self._val.labels == 1
        auroc = metrics.detection_scores(sick, scores, threshold=np.inf)["auroc"]
        return {"epoch": epoch, "val_loss": loss, "val_auroc": auroc, "selection_loss": loss}

    def _draw(self, epoch: int, scores: np.ndarray) -> None:
        rows = self._shown
        outputs = self._predict_maps(self._val.images[rows])
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
                of_class = scores[self._val.labels == label]
                if len(of_class):
                    tf.summary.histogram(f"score/{kind}", of_class)


def epoch_line(entry: dict[str, float], epochs: int) -> str:
    """Format the scores of an epoch as one line of the log."""
    return (
        f"epoch {entry['epoch']}/{epochs}: training loss {entry['train_loss']:.4f}, validation "
        f"loss (healthy) {entry['val_loss']:.4f}, AUROC {entry['val_auroc']:.4f}"
    )
