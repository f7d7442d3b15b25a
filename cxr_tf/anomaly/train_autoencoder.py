"""Train an autoencoder on healthy radiographs only, and choose its anomaly threshold.

    python scripts/train_autoencoder.py --data chest_xray
    python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim   # to compare

Training. The network is trained on the healthy images of the train split, with synthetic opacities
in their lungs, to predict the residual that restores the healthy image; with `--model plain`, to
reconstruct unchanged images. The epoch is chosen by the loss on healthy validation images.

Decision. By default, the score is the one with the highest AUROC on the validation split: the
residual, the lesion mask, the errors of the lung appearance model, or the residual and these errors
combined; with `--model plain`, mse or ssim. The threshold is chosen on the ROC curve of the
validation split and, unless the model is plain, its perturbed copies. Only by these two choices do
abnormal images influence the decision.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.anomaly import drawing, scoring
from cxr_tf.anomaly.fitting import ValidationEvaluator, fit, fit_appearance_model, healthy_images
from cxr_tf.anomaly.perturbed_copies import predict_fn
from cxr_tf.anomaly.resolved import resolve
from cxr_tf.anomaly.threshold import choose_score, choose_threshold, score_perturbed_copies
from cxr_tf.config import TrainAutoencoder, check_numbers
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, dataset, loading, splits
from cxr_tf.data.acquisition import audit
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import write_atomically
from cxr_tf.metrics import check_rule
from cxr_tf.models import autoencoder
from cxr_tf.runs import Run, check_name, open_run, reserve_run
from cxr_tf.scoring import groups
from cxr_tf.serving import export, novelty
from cxr_tf.serving.store import versions
from cxr_tf.training import checkpoints
from cxr_tf.training.distribution import Workers, connect
from cxr_tf.training.records import model_card, write_tensorboard_summary

log = logging.getLogger(__name__)


FEWEST_HEALTHY = 20

HEADLINE = ("auroc", "auprc", "accuracy", "recall", "specificity", "f1")

HYPERPARAMETERS = ("model", "image_size", "epochs", "batch_size", "learning_rate", "augmentation")


def load_data(settings: TrainAutoencoder) -> ImageDataset:
    """Read, describe and check the catalogue, then decode its images; label 1 means abnormal.

    Raises UserError for data that must not be used for training, such as a train split with fewer
    than 20 healthy images.
    """
    catalog = loading.open_catalog(settings.data, seed=settings.seed)
    log.info(checks.describe(catalog))
    _check(catalog, settings)
    workers = connect(settings.worker_timeout)
    workers.agree_on_data(catalog.fingerprint())
    catalog, images = dataset.decode_catalog(
        catalog,
        settings.image_size,
        skip=settings.skip_unreadable,
        load=workers.load_images,
    )
    _check(catalog, settings)
    classes = data_catalog.task_classes("binary")
    return audit.audited(ImageDataset(catalog, images, catalog.labels("binary", classes), classes))


def _check(catalog: data_catalog.Catalog, settings: TrainAutoencoder) -> None:
    sick = catalog.labels("binary", data_catalog.task_classes("binary")) == 1
    healthy = {s: int(np.sum(~sick[catalog.rows(s)])) for s in data_catalog.SPLITS}
    if healthy["train"] < FEWEST_HEALTHY:
        raise UserError(
            f"{catalog.source}: {healthy['train']} healthy images in the train split; an "
            f"autoencoder is trained only on those and needs at least {FEWEST_HEALTHY}"
        )
    for split in ("val", "test"):
        if not healthy[split]:
            raise UserError(f"{catalog.source}: no healthy image in the {split} split")
    by_sensitivity = settings.operating_point.startswith("min-sensitivity")
    if by_sensitivity and not sick[catalog.rows("val")].any():
        raise UserError(
            f"--operating-point {settings.operating_point} needs abnormal images "
            "(with pneumonia) in the validation split"
        )
    splits.check_leakage(catalog, allow_leakage=settings.allow_leakage)


def train_autoencoder(settings: TrainAutoencoder) -> Run:
    """Train an autoencoder, choose its score and threshold, and export it; return the finished run.

    Raises UserError for invalid settings or data, if possible before anything is written. With
    several workers, only the chief writes; the others return after the chief has finished.
    """
    workers = connect(settings.worker_timeout)
    with workers.failing_together():
        run = _train(settings, workers)
        workers.exchange()  # the others wait here until the chief has finished
    return run


def _train(settings: TrainAutoencoder, workers: Workers) -> Run:
    workers.agree_on_settings("train_autoencoder", settings)
    name = settings.name or f"autoencoder-{settings.model}"
    known = scoring.known_scores(settings)
    check_name(name)
    if workers.is_chief:
        reserve_run(settings.logs, "autoencoder", name, settings)
        versions.check_saved_models(settings.saved_models, name)
    _check_numbers(settings)

    # ------------------------------------------------------------------ machine
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    data = load_data(settings)
    train = healthy_images(data.split("train"))
    run = Run(Path(settings.logs) / "autoencoder" / name)
    settings = resolve(settings, len(train), run)
    settings = dataclasses.replace(settings, epochs=workers.broadcast(settings.epochs))
    if workers.broadcast(settings.resume and run.finished):
        if workers.is_chief:
            run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
        log.info("%s is already finished; nothing to do", run.directory)
        return run
    # The network sees only healthy images; the shortcut model, which defines groups, sees all.
    labelled = data.split("train")
    shortcuts = metrics.fit_shortcuts(labelled.images, labelled.labels, data.classes)
    val, test = (groups.with_groups(data.split(split), shortcuts) for split in ("val", "test"))

    # ------------------------------------------------------------------ training
    with workers.strategy.scope():
        trainer = autoencoder.build_network(settings.model, settings.image_size)
    shrunk = autoencoder.as_network_sees(train, settings.model)
    writer = tf.summary.create_noop_writer()
    if workers.is_chief:
        run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
        writer = run.writer()
    log.info(
        "%s autoencoder, %d px, %d healthy images", settings.model, settings.image_size, len(train)
    )
    state = checkpoints.TrainingState(run.directory, workers)
    evaluate = ValidationEvaluator(trainer, val, settings, writer, workers)
    fit(trainer, shrunk, evaluate, state, writer, settings, workers)
    best = state.restore_best(trainer)
    train_seconds = state.seconds
    if not workers.is_chief:
        return run
    # A network that was never compiled, so that the saved model has no optimizer.
    network = autoencoder.build_network(settings.model, settings.image_size)
    network.set_weights(trainer.get_weights())

    # ------------------------------------------------------------------ choices, on validation
    appearance = fit_appearance_model(train) if settings.model == "denoising" else None
    models = {
        name: scoring.scoring_model(network, appearance, healthy_images(val), name)
        for name in known
    }
    predict_fns = {name: predict_fn(model, ("score",)) for name, model in models.items()}
    on_val = score_perturbed_copies(predict_fns, val, settings)
    score = settings.score or choose_score(val.labels == 1, {s: x[0] for s, x in on_val.items()})
    model, val_scores = models[score], on_val[score][0]
    threshold, rule = choose_threshold(val.labels == 1, on_val[score], settings)
    log.info("threshold %.4g: %s", threshold, rule)
    healthy_scores = np.sort(val_scores[val.labels == 0])

    # ------------------------------------------------------------------ evaluation: test, once
    results: dict[str, Any] = {"warnings": [*data.catalog.warnings]}
    predict_maps = predict_fn(model, ("reconstruction", "anomaly_map"))
    for split, part, scores in (
        ("val", val, val_scores),
        ("test", test, predict_fns[score](test.images)["score"]),
    ):
        results[split] = scoring.score_split(
            part, scores, threshold, bootstrap_samples=settings.bootstrap_samples
        )
        predicted = (scores >= threshold).astype(int)
        results["warnings"] += metrics.prediction_warnings(split, predicted, part.classes)
        percentiles = scoring.percentile(scores, healthy_scores)
        scoring.write_predictions(run, split, part, scores, threshold, percentiles)
        shown = drawing.examples(part.labels == 1, scores, threshold)
        outputs = {kind: predict_maps(part.images[rows]) for kind, rows in shown.items()}
        drawing.draw_split(run, split, part, scores, threshold, shown, outputs, writer)
    subgroups = scoring.score_by_subgroup(
        test, scores, threshold, bootstrap_samples=settings.bootstrap_samples
    )
    results |= {"subgroups": subgroups} if subgroups else {}
    results["model"] = {
        "kind": "autoencoder",
        "network": settings.model,
        "score": score,
        "parameters": network.count_params(),
        "threshold": threshold,
        "threshold_rule": rule,
        "best_epoch": best["epoch"],
        "selection_loss": best["selection_loss"],
        "train_seconds": train_seconds,
    }
    results["history"] = state.history
    results["other_scores"] = {
        other: scoring.score_alternative(predict_fns[other], on_val[other], val, test, settings)
        for other in known
        if other != score
    }
    lesions = dataset.lesion_masks(test.catalog, settings.image_size)
    if lesions is not None:
        maps = predict_maps(test.images)["anomaly_map"]
        results["test"] |= scoring.localisation_scores(maps, lesions)
    run.write_figure(
        "training_curves", figures.restoration_curves(state.history, int(best["epoch"])), writer
    )
    hyperparameters = {key: getattr(settings, key) for key in HYPERPARAMETERS}
    headline = (*HEADLINE, *groups.group_metrics(test))
    write_tensorboard_summary(writer, name, {**hyperparameters, "score": score}, results, headline)

    # ------------------------------------------------------------------ export
    write_atomically(run.directory / "model.keras", lambda p: checkpoints.save_keras(model, p))
    # The abnormal training images were not used.
    train_rows = data.catalog.rows("train")
    unused = train_rows[data.labels[train_rows] == 1]
    used = data.catalog.take(np.setdiff1d(np.arange(len(data.catalog)), unused))
    card = model_card(
        "autoencoder",
        data.catalog,
        results,
        headline,
        image_size=settings.image_size,
        seed=settings.seed,
        network=settings.model,
        score=score,
        threshold_rule=rule,
        images=used.about()["images"],
        training_digests=used.training_digests(),
        **groups.shortcut_record(shortcuts, results, headline),
    )
    folder = export.export_autoencoder(
        model,
        Path(settings.saved_models) / name,
        threshold=threshold,
        healthy_scores=healthy_scores,
        card=card,
        resumed=settings.resume,
        detector=novelty.fit_pixel_detector(train, val.images),
    )
    results["model"]["saved_model"] = str(folder)
    run.write_metrics(results)
    state.remove()
    for other, tables in results["other_scores"].items():
        log.info("score %s: %s", other, scoring.auroc_line(tables))
    log.info("score %s (chosen): %s", score, scoring.auroc_line(results))
    log.info(scoring.result_line("test", results["test"]))
    audit.log_warnings(results["warnings"])
    log.info("run:         %s\nSavedModel:  %s", run.directory, folder)
    return run


def _check_numbers(settings: TrainAutoencoder) -> None:
    check_numbers(settings, epochs=1)
    autoencoder.check_size(settings.model, settings.image_size)
    if settings.operating_point == "0.5":
        raise UserError(
            "--operating-point 0.5 is for probabilities, and an anomaly score is not one: choose "
            "another operating point, such as youden"
        )
    check_rule(settings.operating_point)
