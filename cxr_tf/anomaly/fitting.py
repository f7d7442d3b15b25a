"""Fit the autoencoder to healthy images, and evaluate it after each epoch."""

import dataclasses
import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import BATCH, VALIDATION_SEED, perturbed_copies, predict_fn
from cxr_tf.anomaly.resolved import ResolvedAutoencoder
from cxr_tf.anomaly.scoring import known_scores
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data import batches, tf_data
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.data.restoration import opacities
from cxr_tf.models import autoencoder
from cxr_tf.models.lung_appearance import LungAppearanceModel
from cxr_tf.models.replicas import synchronize_norms
from cxr_tf.training import checkpoints, loop, optimizer
from cxr_tf.training import epochs as training_epochs
from cxr_tf.training.distribution import Workers, connect, distribute_batches

log = logging.getLogger(__name__)


# The cross-entropy of the lesion mask has half the weight of the absolute error of the residual.
LOSS_WEIGHTS = {
    "denoising": {"residual": 1.0, "lesion_mask": 0.5},
    "plain": {"reconstruction": 1.0},
}


def healthy_images(train: ImageDataset) -> np.ndarray:
    """Return the healthy images of a split, uint8 [N, S, S, 1]; only these train the network."""
    return train.images[train.labels == 0]


def fit(
    network: keras.Model,
    train: np.ndarray,
    evaluate: "ValidationEvaluator",
    state: checkpoints.TrainingState,
    writer: tf.summary.SummaryWriter,
    settings: ResolvedAutoencoder,
    workers: Workers | None = None,
) -> None:
    """Train the network, continuing from `state`; save a checkpoint after each epoch."""
    epochs = settings.epochs
    strategy = (workers or connect()).strategy
    batch_size = min(settings.batch_size, len(train))
    steps = batches.steps_per_epoch(len(train), batch_size)
    with strategy.scope():
        synchronize_norms(network)
        network.compile(
            optimizer.averaged_adamw(
                settings.learning_rate, steps=steps * epochs, weight_decay=1e-4
            )
        )
        network.optimizer.build(network.trainable_variables)
    if state.epochs_done() >= epochs:
        return
    if state.exists():
        log.info("resuming from the checkpoint of epoch %d", state.epochs_done())
        state.load(network)
    remaining = range(state.epochs_done(), epochs)
    loop.fit(
        network,
        objective(settings.model),
        distribute_batches(
            strategy,
            batch_size,
            lambda part: training_batches(train, settings, batch_size, remaining, part),
        ),
        epochs=remaining,
        steps=steps,
        epoch_end=training_epochs.EpochEnd(
            network,
            evaluate,
            state,
            writer,
            epochs=epochs,
            patience=epochs,
            line=lambda entry: epoch_line(entry, epochs),
        ),
        strategy=strategy,
    )


def objective(model: str) -> loop.Objective:
    """Return the objective of a network: the weighted sum of the losses of all outputs."""

    def of_batch(
        targets: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        total = tf.zeros([])
        for name, loss in losses(model).items():
            # One loss per image: calling the Keras loss itself would also average over the images.
            pixels = loss.call(targets[name], outputs[name])
            axes = list(range(1, len(pixels.shape)))
            total += LOSS_WEIGHTS[model][name] * tf.reduce_mean(pixels, axis=axes)
        return total, {}

    return of_batch


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
    train: np.ndarray,
    settings: TrainAutoencoder,
    batch_size: int,
    epochs: range,
    part: range | None = None,
) -> tf.data.Dataset:
    """Return training batches (inputs, targets) for the given epochs, from healthy images.

    train: uint8 [N, T, T, 1], from `as_network_sees`. part: return only these rows of every batch;
    for the denoising network all rows are still prepared, because an opacity may be made of tissue
    from another image.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": settings.seed,
        "epochs": epochs,
        "strength": settings.augmentation,
    }
    if settings.model == "denoising":
        whole = opacities.restoration_batches(train, opacities.lung_fields(train), **common)
        if part is None or len(part) == batch_size:
            return whole
        rows = slice(part.start, part.stop)
        return whole.map(lambda *batch: tf.nest.map_structure(lambda x: x[rows], batch))
    labels = np.zeros(len(train), np.int64)
    stream = batches.training_batches(train, labels, **common, part=part)

    @tf_data.no_autograph
    def to_itself(images: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        standardised = opacities.standardised(images[..., :1])
        return standardised, {"reconstruction": standardised}

    return stream.map(to_itself)


class ValidationEvaluator:
    """Score the network after every epoch, and draw the same validation images each time.

    `selection_loss`, by which the epoch is chosen, is the training loss on healthy validation
    images with fixed synthetic opacities. The AUROC on validation is for information only.
    """

    def __init__(
        self,
        network: keras.Model,
        val: ImageDataset,
        settings: TrainAutoencoder,
        writer: tf.summary.SummaryWriter,
        workers: Workers | None = None,
    ) -> None:
        self._workers = workers or connect()
        # The appearance model is fitted after training, so the residual replaces its scores here.
        score = settings.score or known_scores(settings)[0]
        score = "residual" if score in ("combined", "appearance") else score
        model = autoencoder.build_autoencoder(network, score)
        self._predict_score = predict_fn(model, ("score",))
        self._predict_maps = predict_fn(model, ("reconstruction", "anomaly_map"))
        self._network, self._val, self._writer = network, val, writer
        self._losses = losses(settings.model)
        self._loss_weights = LOSS_WEIGHTS[settings.model]
        healthy = autoencoder.as_network_sees(healthy_images(val), settings.model)
        batch_size = min(settings.batch_size, len(healthy))
        fixed = dataclasses.replace(settings, seed=VALIDATION_SEED)
        part = self._workers.part(batches.steps_per_epoch(len(healthy), batch_size))
        validation = training_batches(healthy, fixed, batch_size, range(1))
        self._batches = list(validation.skip(part.start).take(len(part)))
        sick = np.flatnonzero(val.labels == 1)
        self._shown = np.concatenate([np.flatnonzero(val.labels == 0)[:3], sick[:3]])

    def __call__(self, epoch: int) -> dict[str, float]:
        """Return {epoch, val_loss, val_auroc, selection_loss} for the current weights.

        Raises FloatingPointError if the loss or a score is not finite.
        """
        values = np.zeros(len(self._batches))
        for number, (inputs, targets) in enumerate(self._batches):
            outputs = self._network(inputs, training=False)
            values[number] = sum(
                self._loss_weights[key] * float(loss(targets[key], outputs[key]))
                for key, loss in self._losses.items()
            )
        loss = float(np.mean(self._workers.gather_rows(values)))
        count = len(self._val.images)
        rows = self._workers.part(count, unit=min(BATCH, -(-count // self._workers.count)))
        scores = self._workers.gather_rows(
            self._predict_score(self._val.images[rows.start : rows.stop])["score"]
        )
        if not (np.isfinite(loss) and np.isfinite(scores).all()):
            raise FloatingPointError("the outputs are not finite")
        if self._workers.is_chief:
            self._draw(epoch, scores)
        sick = self._val.labels == 1
        auroc = metrics.detection_scores(sick, scores, threshold=np.inf)["auroc"]
        return self._workers.broadcast(
            {"epoch": epoch, "val_loss": loss, "val_auroc": auroc, "selection_loss": loss}
        )

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
