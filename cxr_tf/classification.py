"""Fit, calibrate, evaluate and export one classifier.

    python scripts/train_classifier.py --data chest_xray --backbone vgg16 --name mine
    tensorboard --logdir logs

How it trains. The head first: a logistic regression on features of the frozen backbone, computed
once. Then the last blocks, or all, with AdamW under warm-up and cosine, class weights, styles mixed
between images, and an exponential moving average of the weights, which is what is evaluated and
kept.

How it chooses. Validation images of the same hospital are nearly separable and hardly rank
anything, so everything (epoch, temperature, backbone) is chosen on validation *and* a stressed copy
of it: the same images under 2.5 times the default augmentation. Test is looked at once, at the end.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import special
from sklearn.linear_model import LogisticRegression

from cxr_tf import evaluation, figures, metrics, serving, store, training
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import pipeline
from cxr_tf.errors import UserError
from cxr_tf.evaluation import Data
from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier, calibrated, embedding_of, logits_of
from cxr_tf.models.folding import fold_frozen_norms, fold_norms
from cxr_tf.models.styles import mix_styles
from cxr_tf.runs import Run, atomically, open_run, refuse_existing
from cxr_tf.settings import TrainClassifier, TrainingBudget, check_numbers
from cxr_tf.training import (
    EpochEnd,
    TrainingState,
    compiled,
    distribution,
    infer,
    resolve_precision,
    save_keras,
)

log = logging.getLogger(__name__)

# Seed of the stressed validation copy: fixed, so that runs with other seeds are judged alike.
STRESS_SEED = 20_001


def load_data(settings: TrainingBudget) -> Data:
    """Reads, reports and checks the catalogue, then decodes it.

    Raises UserError on anything that must not be trained on; nothing is written before that.
    """
    if settings.image_size < backbones.SMALLEST_SIZE:
        raise UserError(f"--image-size must be at least {backbones.SMALLEST_SIZE}")
    check_numbers(settings)
    metrics.operating_point(np.array([0, 1]), np.array([0.0, 1.0]), settings.operating_point)
    if settings.positive and settings.task != "labels":
        raise UserError(
            "--positive is for --task labels; in binary, pneumonia is the positive class"
        )
    catalog = catalogs.open_catalog(
        settings.data, seed=settings.seed, task=settings.task, positive=settings.positive
    )
    log.info(catalogs.describe(catalog))
    catalogs.check(catalog, task=settings.task, allow_leakage=settings.allow_leakage)
    classes = catalog.classes(settings.task)
    if len(classes) > 2 and settings.operating_point != "half":
        raise UserError(
            f"--operating-point is for two classes; of {len(classes)} the most probable is taken"
        )
    catalog, images = evaluation.decode(catalog, settings.image_size, skip=settings.skip_unreadable)
    catalogs.check(catalog, task=settings.task, allow_leakage=settings.allow_leakage)
    return Data(catalog, images, catalog.labels(settings.task), classes)


def train_and_evaluate(settings: TrainClassifier, data: Data | None = None) -> Run:
    """The whole job; returns the finished run. Everything lands under its directory.

    `data` spares a caller who compares several backbones the decoding. Raises UserError on a
    user's mistake, before anything is written wherever it can be known before.
    """
    name = check(settings)
    pretrained = settings.weights != "none"

    # ------------------------------------------------------------------ machine
    # Same seed, same machine, same numbers: bit for bit.
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    begun = Run(Path(settings.logs) / "classifier" / name)
    settled = settle(settings, begun)
    precision = settled.precision
    strategy = distribution()

    # ------------------------------------------------------------------ data
    data = data or load_data(settings)
    if settings.resume and begun.finished:
        run = open_run(settings.logs, "classifier", name, settings, data.catalog)
        log.info("%s is finished already; nothing to do", run.directory)
        return run
    train, val, test = (data.split(s) for s in catalogs.SPLITS)

    # ------------------------------------------------------------------ model
    with strategy.scope():
        model = build_classifier(
            settings.backbone,
            classes=len(data.classes),
            image_size=settings.image_size,
            precision=precision,
        )
        backbones.load_weights(model, settings.backbone, settings.weights)
        blocks = settled.trainable_blocks
        assert blocks is not None
        backbones.freeze(
            model, settings.backbone, trainable_blocks=blocks, batch_norm=not pretrained
        )
        trainer = trainer_of(
            model, settings.backbone, pretrained=pretrained, augmentation=settings.augmentation
        )

    run = open_run(settings.logs, "classifier", name, settings, data.catalog, settled)
    writer = run.writer()
    log.info(
        "%s on %s, %d classes, %d px, %s, weights %s",
        *(settings.backbone, data.catalog.source, len(data.classes)),
        *(settings.image_size, precision, settings.weights),
    )

    # ------------------------------------------------------------------ training
    judge = Judge(trainer, val, settings.batch_size, class_weights(train.labels))
    state = TrainingState(run.directory)
    if state.exists():
        log.info("going on from the checkpoint of epoch %d", state.epochs_done())
    elif pretrained:
        fit_head(model, train, val, settings.batch_size)
        state.begin(judge(epoch=0), trainer)
        log.info("  head on frozen features: %s", _epoch_line(state.history[-1]))
    fine_tune(trainer, train, judge, state, writer, settled, strategy=strategy)
    best = state.restore_best(trainer)
    train_seconds = state.seconds

    # ------------------------------------------------------------------ calibration, on validation
    # In float32 on one device from here on: what is measured is what is exported.
    final = model
    if precision != "float32" or strategy.num_replicas_in_sync > 1:
        final = build_classifier(
            settings.backbone, classes=len(data.classes), image_size=settings.image_size
        )
        final.set_weights(model.get_weights())
    to_logits = compiled(fold_norms(logits_of(final)))
    final.trainable = True  # whoever goes on with it in Keras finds nothing frozen
    val_logits = infer(to_logits, pipeline.evaluation_batches(val.images, batch_size=32))
    stressed_logits = infer(
        to_logits,
        pipeline.evaluation_batches(val.images, batch_size=32, stress_seed=STRESS_SEED),
    )
    temperature = metrics.fit_temperature(
        np.concatenate([val_logits, stressed_logits]), np.concatenate([val.labels, val.labels])
    )
    final = calibrated(final, temperature)
    val_probabilities = special.softmax(val_logits / temperature, axis=1)
    threshold = 0.5
    if len(data.classes) == 2:
        threshold = metrics.operating_point(
            val.labels, val_probabilities[:, 1], settings.operating_point
        )

    # ------------------------------------------------------------------ evaluation: test, once
    test_logits = infer(to_logits, pipeline.evaluation_batches(test.images, batch_size=32))
    logits_by_split = {"val": val_logits, "test": test_logits}
    results: dict[str, Any] = {}
    for split, part in (("val", val), ("test", test)):
        probabilities = special.softmax(logits_by_split[split] / temperature, axis=1)
        results[split] = evaluation.score_split(
            run, split, part, probabilities, threshold, resamples=settings.resamples
        )
        evaluation.draw_split(run, split, part, probabilities, threshold, writer, results[split])
    results["model"] = {
        "backbone": settings.backbone,
        "task": settings.task,
        "classes": list(data.classes),
        "parameters": final.count_params(),
        "temperature": temperature,
        "threshold": threshold,
        "best_epoch": best["epoch"],
        "selection_loss": best["selection_loss"],
        "train_seconds": train_seconds,
        "images_per_second": images_per_second(to_logits, test.images),
        "precision": precision,
    }
    results["history"] = state.history
    run.write_figure(
        "training_curves", figures.training_curves(state.history, int(best["epoch"])), writer
    )
    write_tensorboard_summary(writer, settled, results, name)

    # ------------------------------------------------------------------ export
    atomically(
        run.directory / "model.keras",
        lambda p: save_keras(final, p),
    )
    folder = serving.export_classifier(
        final,
        Path(settings.saved_models) / name,
        classes=data.classes,
        threshold=threshold,
        card=model_card(settings, data, results),
        resumed=settings.resume,
    )
    results["model"]["saved_model"] = str(folder)
    run.write_metrics(results)
    state.remove()  # only now: without metrics and checkpoint, a resumed run would begin anew
    log.info(evaluation.result_line("test", results["test"]))
    log.info("run:         %s\nSavedModel:  %s", run.directory, folder)
    return run


# ---------------------------------------------------------------------- training


def trainer_of(
    model: keras.Model, backbone: str, *, pretrained: bool, augmentation: float = 1.0
) -> keras.Model:
    """What is trained of a classifier: its layers up to the logits [N, C], and all its variables.

    Frozen BatchNorm goes into the convolutions. From pretrained weights, styles are mixed half of
    the time at an `augmentation` of 1: from scratch the first blocks have no styles yet.
    """
    trainer = fold_frozen_norms(logits_of(model))
    if not pretrained:
        return trainer
    styled = backbones.backbone(backbone).styled
    return mix_styles(trainer, styled, share=min(1.0, 0.5 * augmentation))


def fit_head(model: keras.Model, train: Data, val: Data, batch_size: int) -> None:
    """Sets the `logits` layer to a logistic regression on the frozen backbone's features.

    The strength of its penalty is chosen by log loss on validation and its stressed copy.
    """
    embed = compiled(fold_frozen_norms(embedding_of(model)))
    features = infer(embed, pipeline.evaluation_batches(train.images, batch_size=batch_size))
    seen = np.concatenate(
        [
            infer(embed, pipeline.evaluation_batches(val.images, batch_size=batch_size)),
            infer(
                embed,
                pipeline.evaluation_batches(
                    val.images, batch_size=batch_size, stress_seed=STRESS_SEED
                ),
            ),
        ]
    )
    seen_labels = np.concatenate([val.labels, val.labels])
    weights = class_weights(train.labels)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    # From the strongest penalty to the weakest, each from where the one before ended.
    head = LogisticRegression(max_iter=500, class_weight=weights, warm_start=True)
    for inverse_penalty in (1e-4, 1e-3, 1e-2, 1e-1):
        head.set_params(C=inverse_penalty).fit((features - mean) / spread, train.labels)
        logits = np.log(head.predict_proba((seen - mean) / spread) + 1e-12)
        loss = weighted_log_loss(seen_labels, logits, weights)
        if best is None or loss < best[0]:
            best = (loss, head.coef_.copy(), head.intercept_.copy())
    assert best is not None
    kernel, bias = best[1:]
    if len(kernel) == 1:  # two classes: scikit-learn gives the difference of their logits
        kernel, bias = np.stack([-kernel[0], kernel[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    kernel = kernel / spread
    model.get_layer("logits").set_weights([kernel.T, bias - kernel @ mean])


def check(settings: TrainClassifier) -> str:
    """Raises UserError for what can be known before anything is read; returns the run's name."""
    check_numbers(settings)
    name = settings.name or f"{settings.backbone}-{settings.task}".replace("_", "-")
    refuse_existing(settings.logs, "classifier", name, settings)
    store.check_saved_models(settings.saved_models, name)
    if settings.weights == "none" and (settings.epochs == 0 or settings.trainable_blocks == 0):
        raise UserError("--weights none needs --epochs and --trainable-blocks of at least 1")
    if settings.trainable_blocks is not None:
        backbones.check_blocks(settings.backbone, settings.trainable_blocks)
    return name


def settle(settings: TrainClassifier, begun: Run | None = None) -> TrainClassifier:
    """The settings with a value for what they leave open: precision, depth and learning rate.

    begun: the run of that name. What is resumed goes on as it began, whatever this machine or this
    version would take.
    """
    if begun is not None and settings.resume and (begun.directory / "config.json").exists():
        settings = dataclasses.replace(settings, **begun.config().get("resolved", {}))
    entry = backbones.backbone(settings.backbone)
    pretrained = settings.weights != "none"
    blocks = settings.trainable_blocks
    if blocks is None:
        blocks = entry.tuned_blocks if pretrained else len(entry.blocks)
    return dataclasses.replace(
        settings,
        precision=resolve_precision(
            settings.precision, gains=entry.gains_in_bfloat16(settings.image_size, pretrained)
        ),
        trainable_blocks=blocks,
        learning_rate=settings.learning_rate or (1e-4 if pretrained else entry.scratch_rate),
    )


def fine_tune(
    trainer: keras.Model,
    train: Data,
    judge: "Judge",
    state: "TrainingState",
    writer: tf.summary.SummaryWriter,
    settings: TrainClassifier,
    *,
    strategy: tf.distribute.Strategy,
) -> None:
    """AdamW with warm-up and cosine from the state's epoch to the last, one checkpoint an epoch.

    settings: those of `settle`.
    """
    if settings.epochs == 0 or settings.trainable_blocks == 0:
        return
    batch_size = min(settings.batch_size, len(train.labels))
    steps = pipeline.steps_per_epoch(len(train.labels), batch_size)
    rate = settings.learning_rate
    assert rate is not None
    with strategy.scope():
        optimizer = training.averaged_adamw(
            rate,
            steps=steps * settings.epochs,
            weight_decay=0.05,
            precision=settings.precision,
        )
        trainer.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        training.build_all(trainer, train.labels[:1])
    if state.epochs_done() >= settings.epochs or state.exhausted(settings.patience):
        return
    if state.exists():
        state.load(trainer)
    watcher = EpochEnd(
        trainer, judge, state, writer, epochs=settings.epochs, patience=settings.patience,
        line=lambda latest: _epoch_line(latest, settings.epochs),
    )  # fmt: skip
    trainer.fit(
        pipeline.training_batches(
            train.images,
            train.labels,
            batch_size=batch_size,
            seed=settings.seed,
            epochs=range(state.epochs_done(), settings.epochs),
            strength=settings.augmentation,
        ),
        initial_epoch=state.epochs_done(),
        epochs=settings.epochs,
        steps_per_epoch=steps,
        class_weight=class_weights(train.labels),
        callbacks=[watcher],
        shuffle=False,  # the stream is shuffled already, from the seed
        verbose=0,
    )


class Judge:
    """Scores a model on validation and on its stressed copy, the same way after every epoch."""

    def __init__(
        self, trainer: keras.Model, val: Data, batch_size: int, weights: dict[int, float]
    ) -> None:
        self.logits, self._weights = compiled(trainer), weights
        self._labels, self._classes = val.labels, val.classes
        self._clean = pipeline.evaluation_batches(val.images, batch_size=batch_size)
        self._stressed = pipeline.evaluation_batches(
            val.images, batch_size=batch_size, stress_seed=STRESS_SEED
        )

    def __call__(self, epoch: int) -> dict[str, float]:
        """{epoch, val_*, val_stressed_*, selection_loss} of the model as it stands.

        Raises FloatingPointError where its outputs are no numbers.
        """
        entry: dict[str, float] = {"epoch": epoch}
        losses = []
        for prefix, batches in (("val", self._clean), ("val_stressed", self._stressed)):
            logits = infer(self.logits, batches)
            if not np.isfinite(logits).all():
                raise FloatingPointError("logits are not finite")
            probabilities = special.softmax(logits, axis=1)
            scores = metrics.classification_scores(
                self._labels, probabilities, logits.argmax(axis=1), self._classes
            )
            entry |= {f"{prefix}_{m}": scores[m] for m in ("loss", "auroc", "accuracy")}
            losses.append(weighted_log_loss(self._labels, logits, self._weights))
        entry["selection_loss"] = float(np.mean(losses))
        return entry


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """How much an image of each class counts in the loss; their mean over the images is 1.

    Two classes count alike, so that a probability of 0.5 weighs both errors alike. Of more, each
    counts by the square root of its images: half-way to alike. There the most probable class is the
    answer, and weights that make classes alike took up to 1.3 points of accuracy on validation
    and gave nothing back in balanced accuracy.
    """
    counts = np.bincount(labels)
    weights = counts ** (-1.0 if len(counts) == 2 else -0.5)
    weights *= len(labels) / np.sum(weights * counts)
    return dict(enumerate(weights.tolist()))


def weighted_log_loss(labels: np.ndarray, logits: np.ndarray, weights: dict[int, float]) -> float:
    """Mean log loss, each image by the weight of its class; labels int [N], logits [N, C]."""
    losses = -special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=[weights[k] for k in labels.tolist()]))


# ---------------------------------------------------------------------- what is written down


def write_tensorboard_summary(
    writer: tf.summary.SummaryWriter,
    settings: TrainClassifier,
    results: dict[str, Any],
    name: str,
) -> None:
    """Final scores as scalars, and the settings for the HParams table."""
    from tensorboard.plugins.hparams import api as hparams

    shown = (
        *("backbone", "task", "weights", "image_size", "epochs", "batch_size", "augmentation"),
        *("trainable_blocks", "learning_rate", "precision"),
    )
    with writer.as_default(step=0):
        hparams.hparams({k: getattr(settings, k) for k in shown}, trial_id=name)
        for split in ("val", "test"):
            for metric in evaluation.HEADLINE:
                tf.summary.scalar(f"final/{split}_{metric}", results[split][metric])
    writer.flush()


def images_per_second(function: tf.types.experimental.GenericFunction, images: np.ndarray) -> float:
    """Inference speed on up to 64 images in batches of 32, after a warm-up."""
    batches = list(pipeline.evaluation_batches(images[:64], batch_size=32))
    function(batches[0])
    started = time.perf_counter()
    count = sum(len(np.asarray(function(b))) for b in batches)
    return count / (time.perf_counter() - started)


def model_card(settings: TrainClassifier, data: Data, results: dict[str, Any]) -> dict[str, Any]:
    """What travels with the SavedModel: what it is, how it did, what it is not."""
    return {
        "kind": "classifier",
        "task": settings.task,
        "classes": list(data.classes),
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "threshold": results["model"]["threshold"],
        "temperature": results["model"]["temperature"],
        **data.catalog.about(),
        "learnt_from": data.catalog.learnt_from(),
        "seed": settings.seed,
        "metrics": {s: {k: results[s][k] for k in evaluation.HEADLINE} for s in ("val", "test")},
        "input": "bytes of a JPEG or PNG of one frontal chest radiograph",
        "limits": "Research software, no medical device. Not tested beyond the data named here.",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _epoch_line(entry: dict[str, float], epochs: int | None = None) -> str:
    where = f"epoch {entry['epoch']}/{epochs}: " if epochs else ""
    return (
        f"{where}validation loss {entry['val_loss']:.3f} AUROC {entry['val_auroc']:.4f} "
        f"accuracy {entry['val_accuracy']:.3f}; stressed {entry['val_stressed_loss']:.3f} "
        f"{entry['val_stressed_auroc']:.4f} {entry['val_stressed_accuracy']:.3f}"
    )
