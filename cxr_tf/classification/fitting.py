"""Fit the head, then fine-tune with class weights, and validate after each epoch."""

import keras
import numpy as np
import tensorflow as tf
from scipy import special
from sklearn.linear_model import LogisticRegression

from cxr_tf import metrics
from cxr_tf.classification.resolved import ResolvedTraining
from cxr_tf.data import batches as data_batches
from cxr_tf.data.batches import STRESS_SEED
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.models import backbones
from cxr_tf.models.batch_norm_folding import fold_frozen_norms
from cxr_tf.models.classifier import embedding_of, logits_of
from cxr_tf.models.mixstyle import mix_styles
from cxr_tf.models.replicas import synchronize_norms, with_batch_dropout
from cxr_tf.training import loop
from cxr_tf.training import optimizer as training_optimizer
from cxr_tf.training.checkpoints import TrainingState
from cxr_tf.training.distribution import Workers, connect, distribute_batches
from cxr_tf.training.epochs import EpochEnd
from cxr_tf.training.inference import compiled, infer_divided


def training_model(
    model: keras.Model, backbone: str, *, pretrained: bool, augmentation: float = 1.0
) -> keras.Model:
    """Return the part of a classifier that is trained: its layers up to the logits [N, C].

    Frozen BatchNorm is folded into the convolutions. A pretrained model gets MixStyle, which mixes
    half of the images at an `augmentation` of 1; a model from scratch does not, because its first
    blocks do not encode style yet. With several replicas, dropout, MixStyle and BatchNorm still see
    the complete batch.
    """
    trainer = with_batch_dropout(fold_frozen_norms(logits_of(model)))
    synchronize_norms(trainer)
    if not pretrained:
        return trainer
    styled = backbones.backbone(backbone).styled
    return mix_styles(trainer, styled, share=min(1.0, 0.5 * augmentation))


def fit_head(
    model: keras.Model,
    train: ImageDataset,
    val: ImageDataset,
    batch_size: int,
    workers: Workers | None = None,
) -> None:
    """Set the `logits` layer to a logistic regression on the features of the frozen backbone.

    The penalty is chosen by the log loss on the validation images and their perturbed copy.
    """
    workers = workers or connect()
    embed = compiled(fold_frozen_norms(embedding_of(model)))
    features = infer_divided(embed, train.images, workers, batch_size=batch_size)
    val_features = np.concatenate(
        [
            infer_divided(embed, val.images, workers, batch_size=batch_size, stress_seed=seed)
            for seed in (None, STRESS_SEED)
        ]
    )
    val_labels = np.concatenate([val.labels, val.labels])
    weights = class_weights(train.labels)
    val_weights = np.tile(image_weights(val, weights), 2)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    candidates: list[tuple[float, np.ndarray, np.ndarray]] = []
    # From the strongest penalty to the weakest, each starting at the previous solution.
    head = LogisticRegression(max_iter=500, class_weight=weights, warm_start=True)
    for inverse_penalty in (1e-4, 1e-3, 1e-2, 1e-1):
        head.set_params(C=inverse_penalty).fit((features - mean) / spread, train.labels)
        logits = np.log(head.predict_proba((val_features - mean) / spread) + 1e-12)
        loss = weighted_log_loss(val_labels, logits, val_weights)
        candidates.append((loss, head.coef_.copy(), head.intercept_.copy()))
    _, kernel, bias = min(candidates, key=lambda candidate: candidate[0])
    if len(kernel) == 1:  # for two classes scikit-learn returns the difference of their logits
        kernel, bias = np.stack([-kernel[0], kernel[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    kernel = kernel / spread
    # All workers use the chief's weights: on a different processor the last digits may differ.
    model.get_layer("logits").set_weights(
        workers.broadcast_arrays([kernel.T.astype(np.float32), bias - kernel @ mean])
    )


def fine_tune(
    trainer: keras.Model,
    train: ImageDataset,
    evaluate: "ValidationEvaluator",
    state: TrainingState,
    writer: tf.summary.SummaryWriter,
    settings: ResolvedTraining,
    *,
    workers: Workers,
) -> None:
    """Train with AdamW, continuing from `state`; save a checkpoint after each epoch."""
    if settings.epochs == 0 or settings.trainable_blocks == 0:
        return
    batch_size = min(settings.batch_size, len(train.labels))
    steps = data_batches.steps_per_epoch(len(train.labels), batch_size)
    with workers.strategy.scope():
        optimizer = training_optimizer.averaged_adamw(
            settings.learning_rate,
            steps=steps * settings.epochs,
            weight_decay=0.05,
            precision=settings.precision,
        )
        trainer.compile(optimizer)
        optimizer.build(trainer.trainable_variables)
    if state.epochs_done() >= settings.epochs or state.exhausted(settings.patience):
        return
    if state.exists():
        state.load(trainer)
    epoch_end = EpochEnd(
        trainer, evaluate, state, writer, epochs=settings.epochs, patience=settings.patience,
        line=lambda entry: epoch_line(entry, settings.epochs),
    )  # fmt: skip
    epochs = range(state.epochs_done(), settings.epochs)

    def batches_of(part: range) -> tf.data.Dataset:
        return data_batches.training_batches(
            train.images,
            train.labels,
            batch_size=batch_size,
            seed=settings.seed,
            epochs=epochs,
            strength=settings.augmentation,
            strong=settings.weights != "none",
            part=part,
        )

    loop.fit(
        trainer,
        weighted_cross_entropy(class_weights(train.labels)),
        distribute_batches(workers.strategy, batch_size, batches_of),
        epochs=epochs,
        steps=steps,
        epoch_end=epoch_end,
        strategy=workers.strategy,
    )


def weighted_cross_entropy(weights: dict[int, float]) -> loop.Objective:
    """Return a classifier's objective: the class-weighted cross-entropy, and the accuracy."""
    by_class = np.array([weights[k] for k in sorted(weights)], np.float32)

    def objective(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        correct = tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32)
        return losses * tf.gather(by_class, labels), {"accuracy": correct}

    return objective


class ValidationEvaluator:
    """Score a model on the validation images and their perturbed copy after every epoch.

    Each worker computes the logits of a part of the images; the scores are computed on all images.
    """

    def __init__(
        self,
        trainer: keras.Model,
        val: ImageDataset,
        batch_size: int,
        weights: dict[int, float],
        workers: Workers | None = None,
    ) -> None:
        self.logits, self._weights = compiled(trainer), image_weights(val, weights)
        self._val, self._batch_size, self._workers = val, batch_size, workers or connect()

    def __call__(self, epoch: int) -> dict[str, float]:
        """Return {epoch, val_*, val_stressed_*, selection_loss} for the current weights.

        Raises FloatingPointError if the logits are not finite.
        """
        entry: dict[str, float] = {"epoch": epoch}
        losses = []
        for prefix, seed in (("val", None), ("val_stressed", STRESS_SEED)):
            logits = infer_divided(
                self.logits,
                self._val.images,
                self._workers,
                batch_size=self._batch_size,
                stress_seed=seed,
            )
            if not np.isfinite(logits).all():
                raise FloatingPointError("logits are not finite")
            probabilities = special.softmax(logits, axis=1)
            scores = metrics.classification_scores(
                self._val.labels, probabilities, logits.argmax(axis=1), self._val.classes
            )
            entry |= {f"{prefix}_{m}": scores[m] for m in ("loss", "auroc", "accuracy")}
            losses.append(weighted_log_loss(self._val.labels, logits, self._weights))
            if self._val.against is not None:
                recalls = metrics.recall_against_shortcut(
                    self._val.labels, logits.argmax(axis=1), self._val.against, self._val.classes
                )
                entry[f"{prefix}_worst_group_recall"] = recalls["worst_group_recall"]
        entry["selection_loss"] = float(np.mean(losses))
        return self._workers.broadcast(entry)


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Return the loss weight of an image of each class; the mean weight over all images is 1.

    Two classes have equal total weight, so that a probability of 0.5 balances both kinds of error.
    With more classes, the total weight of a class is proportional to the square root of its number
    of images: there, the most probable class is predicted, and equal total weights cost up to 1.3
    points of accuracy on validation without a gain in balanced accuracy.
    """
    counts = np.bincount(labels)
    weights = counts ** (-1.0 if len(counts) == 2 else -0.5)
    weights *= len(labels) / np.sum(weights * counts)
    return dict(enumerate(weights.tolist()))


def image_weights(part: ImageDataset, weights: dict[int, float]) -> np.ndarray:
    """Return the weight of each validation image, float [N]: class weight times group weight.

    Within a class, the images that contradict the shortcut weigh as much as all others; see
    `metrics.group_weights`. Everything chosen on validation is thereby chosen for both groups.
    """
    by_class = np.array([weights[k] for k in part.labels.tolist()])
    return by_class * metrics.group_weights(part.labels, part.against)


def weighted_log_loss(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean log loss; labels int [N], logits [N, C], weights [N]."""
    losses = -special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


def epoch_line(entry: dict[str, float], epochs: int | None = None) -> str:
    """Format the validation scores of an epoch as one line of the log."""
    where = f"epoch {entry['epoch']}/{epochs}: " if epochs else ""
    return (
        f"{where}validation loss {entry['val_loss']:.3f} AUROC {entry['val_auroc']:.4f} "
        f"accuracy {entry['val_accuracy']:.3f}; perturbed {entry['val_stressed_loss']:.3f} "
        f"{entry['val_stressed_auroc']:.4f} {entry['val_stressed_accuracy']:.3f}"
    )
