"""Anomaly detection: an autoencoder that has seen healthy radiographs only.

    python scripts/train_autoencoder.py --data chest_xray
    python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim   # to compare

How it trains. The network sees healthy images of the train split and nothing else, with opacities
painted into their lungs, and learns to give back the healthy image. The epoch is chosen by its loss
on healthy validation images, painted the same way each time.

How it decides. The score joins what the network takes away with what healthy surroundings of the
lungs let expect in them, or is one of the two alone where that parts the validation split better.
The threshold is read off the ROC curve of the validation split, taken otherwise as well. These two
choices are the only use of a sick image before the test.
"""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.config import CompareAutoencoders
from cxr_tf import figures, metrics
from cxr_tf.anomaly.drawing import draw_split, examples
from cxr_tf.anomaly.fitting import ValidationEvaluator, fit, fit_appearance_model, healthy_images
from cxr_tf.anomaly.perturbed_copies import predict_fn
from cxr_tf.anomaly.records import model_card, write_tensorboard_summary
from cxr_tf.anomaly.scoring import (
    auroc_line,
    known_scores,
    localisation_scores,
    percentile,
    result_line,
    score_alternative,
    score_split,
    scoring_model,
    write_predictions,
)
from cxr_tf.anomaly.threshold import choose_score, choose_threshold, score_perturbed_copies
from cxr_tf.config import TrainAutoencoder, check_numbers
from cxr_tf.data import batches, checks, dataset, loading, splits
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import write_atomically
from cxr_tf.metrics import check_rule
from cxr_tf.models import autoencoder
from cxr_tf.runs import Run, open_run, reserve_run
from cxr_tf.scoring.groups import shortcut_record, with_groups
from cxr_tf.serving import versions
from cxr_tf.serving.export import export_autoencoder
from cxr_tf.training import checkpoints

log = logging.getLogger(__name__)


FEWEST_HEALTHY = 20

# Longer training makes the restoring network's loss smaller and its score no better; with fewer
# steps in all it has learnt little.
EPOCHS, FEWEST_STEPS, MOST_EPOCHS, PLAIN_EPOCHS = 8, 500, 60, 30


def load_data(settings: TrainAutoencoder) -> ImageDataset:
    """Reads, reports and checks the catalogue, then decodes it; label 1 is sick.

    Raises UserError on anything that must not be trained on, such as fewer than 20 healthy images
    in train.
    """
    catalog = loading.open_catalog(settings.data, seed=settings.seed)
    log.info(checks.describe(catalog))
    _check(catalog, settings)
    catalog, images = dataset.decode_catalog(
        catalog, settings.image_size, skip=settings.skip_unreadable
    )
    _check(catalog, settings)
    classes = data_catalog.task_classes("binary")
    return ImageDataset(catalog, images, catalog.labels("binary", classes), classes)


def _check(catalog: data_catalog.Catalog, settings: TrainAutoencoder) -> None:
    sick = catalog.labels("binary", data_catalog.task_classes("binary")) == 1
    healthy = {s: int(np.sum(~sick[catalog.rows(s)])) for s in data_catalog.SPLITS}
    if healthy["train"] < FEWEST_HEALTHY:
        raise UserError(
            f"{catalog.source}: {healthy['train']} healthy images in the train split; an "
            f"autoencoder learns from them alone and needs at least {FEWEST_HEALTHY}"
        )
    for split in ("val", "test"):
        if not healthy[split]:
            raise UserError(f"{catalog.source}: no healthy image in the {split} split")
    by_sensitivity = settings.operating_point.startswith("min-sensitivity")
    if by_sensitivity and not sick[catalog.rows("val")].any():
        raise UserError(
            f"--operating-point {settings.operating_point} needs sick images in the "
            "validation split"
        )
    splits.check_leakage(catalog, allow_leakage=settings.allow_leakage)


def train_autoencoder(settings: TrainAutoencoder) -> Run:
    """The whole job; returns the finished run.

    Raises UserError on a user's mistake, before anything is written wherever it can be known
    before.
    """
    name = settings.name or f"autoencoder-{settings.model}"
    known = known_scores(settings)
    reserve_run(settings.logs, "autoencoder", name, settings)
    versions.check_saved_models(settings.saved_models, name)
    _check_numbers(settings)

    # ------------------------------------------------------------------ machine
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    data = load_data(settings)
    train = healthy_images(data.split("train"))
    begun = Run(Path(settings.logs) / "autoencoder" / name)
    settings = resolve(settings, len(train), begun)
    if settings.resume and begun.finished:
        run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
        log.info("%s is finished already; nothing to do", run.directory)
        return run
    # The network sees healthy images alone; the sick ones define the groups that scores are
    # reported for.
    everything = data.split("train")
    shortcuts = metrics.fit_shortcuts(everything.images, everything.labels, data.classes)
    val, test = (with_groups(data.split(split), shortcuts) for split in ("val", "test"))

    # ------------------------------------------------------------------ training
    trainer = autoencoder.build_network(settings.model, settings.image_size)
    shrunk = autoencoder.as_network_sees(train, settings.model)
    run = open_run(settings.logs, "autoencoder", name, settings, data.catalog)
    writer = run.writer()
    log.info(
        "%s autoencoder, %d px, %d healthy images", settings.model, settings.image_size, len(train)
    )
    state = checkpoints.TrainingState(run.directory)
    judge = ValidationEvaluator(trainer, val, settings, writer)
    fit(trainer, shrunk, judge, state, writer, settings)
    best = state.restore_best(trainer)
    train_seconds = state.seconds
    # A network that was never compiled: what is saved needs no optimizer of ours to be loaded.
    network = autoencoder.build_network(settings.model, settings.image_size)
    network.set_weights(trainer.get_weights())

    # ------------------------------------------------------------------ choices, on validation
    context = fit_appearance_model(train) if settings.model == "denoising" else None
    models = {s: scoring_model(network, context, healthy_images(val), s) for s in known}
    asks = {s: predict_fn(m, ("score",)) for s, m in models.items()}
    on_val = score_perturbed_copies(asks, val, settings)
    score = settings.score or choose_score(val.labels == 1, {s: x[0] for s, x in on_val.items()})
    model, val_scores = models[score], on_val[score][0]
    threshold, rule = choose_threshold(val.labels == 1, on_val[score], settings)
    log.info("threshold %.4g: %s", threshold, rule)
    healthy_scores = np.sort(val_scores[val.labels == 0])

    # ------------------------------------------------------------------ evaluation: test, once
    results: dict[str, Any] = {}
    look = predict_fn(model, ("reconstruction", "anomaly_map"))
    scores = {"val": val_scores, "test": asks[score](test.images)["score"]}
    for split, part in (("val", val), ("test", test)):
        own = scores[split]
        results[split] = score_split(
            part, own, threshold, bootstrap_samples=settings.bootstrap_samples
        )
        write_predictions(run, split, part, own, threshold, percentile(own, healthy_scores))
        rows = examples(part.labels == 1, own, threshold)
        seen = {kind: look(part.images[chosen]) for kind, chosen in rows.items()}
        draw_split(run, split, part, own, threshold, rows, seen, writer)
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
        other: score_alternative(asks[other], on_val[other], val, test, settings)
        for other in known
        if other != score
    }
    lesions = dataset.lesion_masks(test.catalog, settings.image_size)
    if lesions is not None:
        maps = look(test.images)["anomaly_map"]
        results["test"] |= localisation_scores(maps, lesions)
    run.write_figure(
        "training_curves", figures.restoration_curves(state.history, int(best["epoch"])), writer
    )
    write_tensorboard_summary(writer, settings, results, name)

    # ------------------------------------------------------------------ export
    write_atomically(run.directory / "model.keras", lambda p: checkpoints.save_keras(model, p))
    folder = export_autoencoder(
        model,
        Path(settings.saved_models) / name,
        threshold=threshold,
        healthy_scores=healthy_scores,
        card=model_card(settings, data, results) | shortcut_record(shortcuts),
        resumed=settings.resume,
    )
    results["model"]["saved_model"] = str(folder)
    run.write_metrics(results)
    state.remove()
    for other, tables in results["other_scores"].items():
        log.info("the same network by --score %s: %s", other, auroc_line(tables))
    log.info("by --score %s: %s", score, auroc_line(results))
    log.info(result_line("test", results["test"]))
    log.info("run:         %s\nSavedModel:  %s", run.directory, folder)
    return run


def resolve(settings: TrainAutoencoder, healthy: int, begun: Run) -> TrainAutoencoder:
    """The settings with a number of epochs: that of the run that is resumed, or `epochs_of`."""
    if settings.epochs is None and settings.resume and (begun.directory / "config.json").exists():
        # If healthy images have come since, it is the data that have changed, and no setting.
        return dataclasses.replace(settings, epochs=begun.config["settings"]["epochs"])
    return dataclasses.replace(settings, epochs=epochs_of(settings, healthy))


def epochs_of(settings: TrainAutoencoder | CompareAutoencoders, healthy: int) -> int:
    """How often so many healthy images are gone through, where the settings leave it open."""
    if settings.epochs is not None:
        return settings.epochs
    if getattr(settings, "model", "denoising") == "plain":
        return PLAIN_EPOCHS
    steps = batches.steps_per_epoch(healthy, min(settings.batch_size, healthy))
    return max(EPOCHS, min(math.ceil(FEWEST_STEPS / steps), MOST_EPOCHS))


def _check_numbers(settings: TrainAutoencoder) -> None:
    check_numbers(settings, epochs=1)
    autoencoder.check_size(settings.model, settings.image_size)
    if settings.operating_point == "0.5":
        raise UserError(
            "--operating-point 0.5 is for probabilities; an anomaly score has no such point"
        )
    check_rule(settings.operating_point)
