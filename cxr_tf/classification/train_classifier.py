"""Fit, calibrate, evaluate and export one classifier.

    python scripts/train_classifier.py --data chest_xray --backbone vgg16 --name mine
    tensorboard --logdir logs

Training. First, the head is fitted: a logistic regression on the features of the frozen backbone,
which are computed once. Then the last blocks, or all of them, are trained with AdamW, a warm-up and
cosine schedule, class weights, MixStyle, and an exponential moving average of the weights, which is
evaluated and saved.

Selection. Validation images from the same hospital are nearly separable and can hardly rank models,
so everything (epoch, calibration, backbone) is chosen on validation *and* a perturbed copy of it:
the same images under the milder of the two augmentations (`vary_acquisition`), at 2.5 times its
strength. The test set is used once, at the end.
"""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import special

from cxr_tf import figures, metrics
from cxr_tf.classification import fitting
from cxr_tf.classification.resolved import resolve_together
from cxr_tf.classification.shortcuts import audit_training_images
from cxr_tf.config import TrainClassifier, TrainingBudget, check_numbers
from cxr_tf.data import batches, checks, dataset, loading
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.acquisition import audit
from cxr_tf.data.batches import STRESS_SEED
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import write_atomically
from cxr_tf.models import backbones, weights
from cxr_tf.models.batch_norm_folding import fold_norms
from cxr_tf.models.classifier import build_classifier, calibrated, logits_of
from cxr_tf.runs import Run, check_name, open_run, reserve_run
from cxr_tf.scoring import classifier, groups
from cxr_tf.serving import export, novelty
from cxr_tf.serving.store import versions
from cxr_tf.training.checkpoints import TrainingState, save_keras
from cxr_tf.training.distribution import Workers, connect
from cxr_tf.training.inference import compiled, images_per_second, infer
from cxr_tf.training.records import model_card, write_tensorboard_summary

log = logging.getLogger(__name__)

HYPERPARAMETERS = (
    *("backbone", "task", "weights", "image_size", "epochs", "batch_size", "augmentation"),
    *("trainable_blocks", "learning_rate", "precision"),
)


def load_data(settings: TrainingBudget) -> ImageDataset:
    """Read, describe and check the catalogue, then decode its images.

    Raises UserError for data that must not be used for training, before anything is written.
    """
    if settings.image_size < backbones.SMALLEST_SIZE:
        raise UserError(f"--image-size must be at least {backbones.SMALLEST_SIZE}")
    check_numbers(settings)
    metrics.check_rule(settings.operating_point)
    if settings.positive and settings.task != "labels":
        raise UserError(f"--positive is for --task labels: leave it out for --task {settings.task}")
    catalog = loading.open_catalog(
        settings.data, seed=settings.seed, task=settings.task, positive=settings.positive
    )
    log.info(checks.describe(catalog))
    checks.check(catalog, task=settings.task, allow_leakage=settings.allow_leakage)
    classes = catalog.classes(settings.task)
    if len(classes) > 2 and settings.operating_point != "0.5":
        raise UserError(
            "--operating-point is for two classes: leave it out, because with "
            f"{len(classes)} classes the most probable one is predicted"
        )
    workers = connect(settings.worker_timeout)
    workers.agree_on_data(catalog.fingerprint())
    catalog, images = dataset.decode_catalog(
        catalog,
        settings.image_size,
        skip=settings.skip_unreadable,
        load=workers.load_images,
    )
    checks.check(catalog, task=settings.task, allow_leakage=settings.allow_leakage)
    return audit.audited(ImageDataset(catalog, images, catalog.labels(settings.task), classes))


def train_classifier(settings: TrainClassifier, data: ImageDataset | None = None) -> Run:
    """Train, calibrate, evaluate and export a classifier; return the finished run.

    data: decoded images, so that a comparison of several backbones decodes them only once. Raises
    UserError for invalid settings or data, if possible before anything is written. With several
    workers, only the chief writes; the others return after the chief has finished.
    """
    workers = connect(settings.worker_timeout)
    with workers.failing_together():
        run = _train(settings, data, workers)
        workers.exchange()  # the others wait here until the chief has finished
    return run


def _train(settings: TrainClassifier, data: ImageDataset | None, workers: Workers) -> Run:
    workers.agree_on_settings("train_classifier", settings)
    name = check_settings(settings, workers)
    pretrained = settings.weights != "none"
    strategy = workers.strategy

    # ------------------------------------------------------------------ machine
    # The same seed on the same machine gives identical numbers.
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()
    run = Run(Path(settings.logs) / "classifier" / name)
    resolved = resolve_together(settings, run, workers)
    precision = resolved.precision

    # ------------------------------------------------------------------ data
    data = data or load_data(settings)
    if workers.broadcast(settings.resume and run.finished):
        if workers.is_chief:
            run = open_run(settings.logs, "classifier", name, settings, data.catalog)
        log.info("%s is already finished; nothing to do", run.directory)
        return run
    train, val, test = (data.split(s) for s in data_catalog.SPLITS)
    shortcuts = metrics.fit_shortcuts(train.images, train.labels, train.classes)
    val, test = groups.with_groups(val, shortcuts), groups.with_groups(test, shortcuts)

    # ------------------------------------------------------------------ model
    with strategy.scope():
        model = build_classifier(
            settings.backbone,
            classes=len(data.classes),
            image_size=settings.image_size,
            precision=precision,
        )
        weights.load_weights(model, settings.backbone, settings.weights)
        backbones.freeze(
            model,
            settings.backbone,
            trainable_blocks=resolved.trainable_blocks,
            batch_norm=not pretrained,
        )
        trainer = fitting.training_model(
            model, settings.backbone, pretrained=pretrained, augmentation=settings.augmentation
        )

    writer = tf.summary.create_noop_writer()
    if workers.is_chief:
        run = open_run(settings.logs, "classifier", name, settings, data.catalog, resolved)
        writer = run.writer()
    log.info(
        "%s on %s, %d classes, %d px, %s, weights %s",
        *(settings.backbone, data.catalog.source, len(data.classes)),
        *(settings.image_size, precision, settings.weights),
    )

    # ------------------------------------------------------------------ training
    evaluate = fitting.ValidationEvaluator(
        trainer, val, settings.batch_size, fitting.class_weights(train.labels), workers
    )
    state = TrainingState(run.directory, workers)
    if state.exists():
        log.info("resuming from the checkpoint of epoch %d", state.epochs_done())
    elif pretrained:
        fitting.fit_head(model, train, val, settings.batch_size, workers)
        state.begin(evaluate(epoch=0), trainer)
        log.info("  head on frozen features: %s", fitting.epoch_line(state.history[-1]))
    fitting.fine_tune(trainer, train, evaluate, state, writer, resolved, workers=workers)
    best = state.restore_best(trainer)
    train_seconds = state.seconds
    if not workers.is_chief:
        return run

    # ------------------------------------------------------------------ calibration, on validation
    # From here on, computation is in float32 on one device, as in the exported model.
    final = model
    if precision != "float32" or strategy.num_replicas_in_sync > 1:
        final = build_classifier(
            settings.backbone, classes=len(data.classes), image_size=settings.image_size
        )
        final.set_weights(model.get_weights())
    to_logits = compiled(fold_norms(logits_of(final)))
    final.trainable = True  # model.keras can be trained further without unfreezing layers
    val_logits = infer(to_logits, batches.evaluation_batches(val.images, batch_size=32))
    stressed_logits = infer(
        to_logits,
        batches.evaluation_batches(val.images, batch_size=32, stress_seed=STRESS_SEED),
    )
    temperature, bias = metrics.fit_calibration(
        np.concatenate([val_logits, stressed_logits]),
        np.concatenate([val.labels, val.labels]),
        np.tile(fitting.image_weights(val, fitting.class_weights(train.labels)), 2),
    )
    final = calibrated(final, temperature, bias)

    def to_probabilities(logits: np.ndarray) -> np.ndarray:
        return special.softmax(logits / temperature + bias, axis=1)

    val_probabilities = to_probabilities(val_logits)
    threshold = 0.5
    if len(data.classes) == 2:
        threshold = metrics.operating_point(
            val.labels,
            val_probabilities[:, 1],
            settings.operating_point,
            metrics.group_weights(val.labels, val.against),
        )
    set_thresholds = metrics.conformal_thresholds(
        val.labels, val_probabilities, val.catalog.patients, coverage=settings.coverage
    )
    detector = novelty.fit_detector(fold_norms(final), train, val)

    # ------------------------------------------------------------------ evaluation: test, once
    test_logits = infer(to_logits, batches.evaluation_batches(test.images, batch_size=32))
    probabilities_by_split = {"val": val_probabilities, "test": to_probabilities(test_logits)}
    results: dict[str, Any] = {}
    for split, part in (("val", val), ("test", test)):
        probabilities = probabilities_by_split[split]
        results[split] = classifier.score_split(
            run, split, part, probabilities, threshold,
            bootstrap_samples=settings.bootstrap_samples,
            set_thresholds=set_thresholds,
        )  # fmt: skip
        classifier.draw_split(run, split, part, probabilities, threshold, writer, results[split])
    results["model"] = {
        "backbone": settings.backbone,
        "task": settings.task,
        "classes": list(data.classes),
        "parameters": final.count_params(),
        "temperature": temperature,
        "bias": dict(zip(data.classes, bias.tolist(), strict=True)),
        "threshold": threshold,
        "coverage": settings.coverage,
        "set_thresholds": dict(zip(data.classes, set_thresholds.tolist(), strict=True)),
        "novelty_pass_rate": detector.pass_rate,
        "best_epoch": best["epoch"],
        "selection_loss": best["selection_loss"],
        "train_seconds": train_seconds,
        "images_per_second": images_per_second(to_logits, test.images),
        "precision": precision,
    }
    subgroups = classifier.score_subgroups(
        test,
        probabilities_by_split["test"],
        export.decide(tf.constant(probabilities_by_split["test"]), threshold).numpy(),
        bootstrap_samples=settings.bootstrap_samples,
    )
    results |= {"subgroups": subgroups} if subgroups else {}
    shortcut_audit = audit_training_images(run, train, writer, seed=settings.seed)
    results["shortcuts"] = shortcut_audit.as_dict() if shortcut_audit is not None else {}
    results["history"] = state.history
    results["warnings"] = [*data.catalog.warnings]
    for split, part in (("val", val), ("test", test)):
        predicted = export.decide(tf.constant(probabilities_by_split[split]), threshold)
        results["warnings"] += metrics.prediction_warnings(split, predicted.numpy(), part.classes)
    run.write_figure(
        "training_curves", figures.training_curves(state.history, int(best["epoch"])), writer
    )
    hyperparameters = {key: getattr(resolved, key) for key in HYPERPARAMETERS}
    shown = (*classifier.HEADLINE, *groups.group_metrics(test))
    write_tensorboard_summary(writer, name, hyperparameters, results, shown)

    # ------------------------------------------------------------------ export
    write_atomically(run.directory / "model.keras", lambda p: save_keras(final, p))
    card = model_card(
        "classifier",
        data.catalog,
        results,
        shown,
        image_size=settings.image_size,
        seed=settings.seed,
        task=settings.task,
        classes=list(data.classes),
        backbone=settings.backbone,
        temperature=temperature,
        bias=results["model"]["bias"],
        coverage=settings.coverage,
        set_thresholds=results["model"]["set_thresholds"],
        novelty_pass_rate=detector.pass_rate,
        **groups.shortcut_record(shortcuts, results, shown),
    )
    folder = export.export_classifier(
        final,
        Path(settings.saved_models) / name,
        classes=data.classes,
        threshold=threshold,
        card=card,
        resumed=settings.resume,
        set_thresholds=set_thresholds,
        detector=detector,
    )
    results["model"]["saved_model"] = str(folder)
    run.write_metrics(results)
    state.remove()  # only now: without metrics and checkpoint, a resumed run would start over
    log.info(classifier.result_line("test", results["test"]))
    if test.against is not None:
        log.info(groups.group_line(results["test"]))
    audit.log_warnings(results["warnings"])
    log.info("run:         %s\nSavedModel:  %s", run.directory, folder)
    return run


def check_settings(settings: TrainClassifier, workers: Workers) -> str:
    """Return the run's name; raise UserError for invalid settings, before data are read."""
    check_numbers(settings)
    name = settings.name or f"{settings.backbone}-{settings.task}".replace("_", "-")
    check_name(name)
    if workers.is_chief:
        reserve_run(settings.logs, "classifier", name, settings)
        versions.check_saved_models(settings.saved_models, name)
    if settings.weights == "none" and (settings.epochs == 0 or settings.trainable_blocks == 0):
        raise UserError("--weights none needs --epochs and --trainable-blocks of at least 1")
    if settings.trainable_blocks is not None:
        backbones.check_blocks(settings.backbone, settings.trainable_blocks)
    return name
