"""Fit k nearest neighbours to a classifier's embeddings, evaluate and export them.

    python scripts/fit_knn.py --classifier logs/classifier/vgg16-binary

Everything is chosen on the validation set (see `selection`). The test set is evaluated once.

Probabilities are shares of the vote and not calibrated: a share changes in steps of 1/k, and a
temperature cannot change a share of 0 or 1.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.config import FitKnn, check_numbers
from cxr_tf.data import checks, dataset, loading
from cxr_tf.errors import UserError
from cxr_tf.neighbors.embeddings import Classifier, embed, open_classifier, split_order
from cxr_tf.neighbors.results import (
    THUMBNAIL,
    draw_neighbors,
    draw_split,
    novelty_of,
    project,
    write_predictions,
)
from cxr_tf.neighbors.selection import before_knn, fit_pipeline, search
from cxr_tf.neighbors.storage import check_agreement, write_knn
from cxr_tf.runs import Run, open_run, reserve_run
from cxr_tf.scoring import classifier as scoring_classifier
from cxr_tf.scoring import selection
from cxr_tf.scoring.groups import against_of_files, shortcuts_of
from cxr_tf.scoring.predictions import Predictions, paired_tests
from cxr_tf.serving import export
from cxr_tf.serving.store import versions

log = logging.getLogger(__name__)


# A radiograph is novel (unlike the training data) if its distance to the k-th neighbour exceeds
# this quantile of that distance on validation.
NOVELTY_QUANTILE = 0.99


def fit_knn(settings: FitKnn) -> Run:
    """Fit, evaluate and export the nearest neighbours, and return the finished run.

    The run's directory contains all results. Raises UserError for invalid settings or data, if
    possible before anything is written.
    """
    if not settings.classifier:
        raise UserError("give --classifier, or --archive to find similar cases in an archive")
    classifier = open_classifier(settings.classifier, settings.engine)
    card, classes = classifier.served.card, classifier.served.classes
    settings = resolve(settings, classifier)
    assert settings.seed is not None
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    check = functools.partial(
        checks.check, task=card["task"], classes=classes, allow_leakage=settings.allow_leakage
    )
    catalog = loading.open_catalog(settings.data, seed=settings.seed, task=card["task"])
    log.info(checks.describe(catalog))
    check(catalog)
    catalog, thumbnails = dataset.decode_catalog(catalog, THUMBNAIL, skip=settings.skip_unreadable)
    check(catalog)
    order, indexed = split_order(catalog, catalog.labels(card["task"], classes))
    catalog, thumbnails = catalog.take(order), thumbnails[order]
    same_data = catalog.fingerprint() == card["data_fingerprint"]
    if not same_data:
        log.info("  note: %s", selection.OTHER_DATA)
    run = open_run(settings.logs, "knn", settings.name, settings, catalog)
    if run.finished:
        log.info("%s is already finished; nothing to do", run.directory)
        return run
    writer = run.writer()

    # ------------------------------------------------------------------ embeddings
    embeddings = embed(classifier, catalog, indexed, run, settings)
    val, test = embeddings.rows("val"), embeddings.rows("test")
    labels = embeddings.labels

    # ------------------------------------------------------------------ choice, on validation
    shortcuts = shortcuts_of(card)
    against = {
        split: against_of_files(catalog.paths[where], labels[where], shortcuts)
        for split, where in (("val", val), ("test", test))
    }
    grid = search(embeddings, metrics.group_weights(labels[val], against["val"]))
    chosen = max(grid, key=lambda c: (c.score, -c.brier))
    log.info(
        "  chosen from %d: k = %d, %s, %s, %s weights (balanced accuracy on validation %.3f, "
        "on its perturbed copy %.3f)",
        *(len(grid), chosen.k, chosen.representation, chosen.metric, chosen.weights),
        *(chosen.balanced_accuracy, chosen.stressed_balanced_accuracy),
    )
    knn = fit_pipeline(embeddings, chosen)

    # ------------------------------------------------------------------ evaluation: test, once
    values = embeddings.read()
    distances, rows = {}, {}
    for split, where in (("val", val), ("test", test)):
        distances[split], rows[split] = knn[-1].kneighbors(before_knn(knn, values[where]))
    limit = float(np.quantile(distances["val"][:, -1], NOVELTY_QUANTILE))
    results: dict[str, Any] = {}
    classifier_results: dict[str, Any] = {}
    predicted = np.full(len(labels), -1)
    probabilities = {}
    for split, where in (("val", val), ("test", test)):
        part = dataset.ImageDataset(
            catalog.take(range(len(catalog))[where]),
            thumbnails[where],
            labels[where],
            classes,
            against[split],
        )
        shares = knn.predict_proba(values[where])
        probabilities[split] = shares
        predicted[where] = shares.argmax(axis=1)
        novelty = novelty_of(distances[split], limit)
        results[split] = scoring_classifier.score(
            part,
            shares,
            predicted[where],
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )
        results[split]["novel"] = float(np.mean(novelty > 1))
        write_predictions(run, split, part, shares, predicted[where], novelty)
        by_classifier = embeddings.probabilities[: val.stop - val.start]
        if split == "test":
            by_classifier = embeddings.probabilities[val.stop - val.start :]
        label = export.decide(tf.constant(by_classifier), card["threshold"]).numpy()
        classifier_results[split] = scoring_classifier.score(
            part,
            by_classifier,
            label,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )
        if split == "test":
            results["knn_against_classifier"] = paired_tests(
                *(
                    Predictions(part.catalog.paths, part.catalog.patients, part.labels, p, y)
                    for p, y in ((shares, predicted[where]), (by_classifier, label))
                ),
                bootstrap_samples=settings.bootstrap_samples,
                seed=settings.seed,
            )
        draw_split(run, split, part, shares, predicted[where], results[split], writer)
    results["classifier"] = classifier_results
    results["model"] = {
        **dataclasses.asdict(chosen),
        "kind": "knn",
        "task": card["task"],
        "classes": list(classes),
        "classifier": str(classifier.served.folder),
        "engine": classifier.served.engine_for("embed"),
        "embedding_width": embeddings.width,
        "index": [embeddings.indexed, int(knn[-1].n_features_in_)],
        "novelty_limit": limit,
        "same_data_as_classifier": same_data,
        "probabilities": "shares of the vote, not calibrated",
    }
    results["grid"] = [dataclasses.asdict(c) for c in grid]

    # ------------------------------------------------------------------ figures
    run.write_figure("grid", figures.knn_grid(results["grid"], dataclasses.asdict(chosen)), writer)
    run.write_figure(
        "neighbors",
        draw_neighbors(
            catalog, labels, test, probabilities["test"], predicted, distances["test"],
            rows["test"], classes, card["image_size"],
        ),
        writer,
    )  # fmt: skip
    results["projection"] = project(
        run, writer, classifier, embeddings, values, predicted, thumbnails, settings
    )

    # ------------------------------------------------------------------ export
    manifest = {
        "kind": "knn",
        "task": card["task"],
        "classes": list(classes),
        "embedding_width": embeddings.width,
        "k": chosen.k,
        "metric": chosen.metric,
        "representation": chosen.representation,
        "weights": chosen.weights,
        "novelty_limit": limit,
        "classifier": {
            "name": card["name"],
            "version": card["version"],
            "fingerprint": classifier.fingerprint,
        },
    }
    agreement: dict[str, Any] = {}

    def agree(folder: Path) -> dict[str, Any]:
        # The exported model embeds with TensorFlow, and OpenVINO's last digits can decide between
        # near neighbours: if OpenVINO was used, compare on TensorFlow's embeddings.
        same = classifier.served.engine_for("embed") == "tensorflow"
        queries = values[test] if same else None
        return check_agreement(folder, knn, queries, catalog.paths[test], settings.batch_size)

    def write_beside(folder: Path) -> None:
        write_knn(knn, folder, manifest)
        agreement.update(agree(folder))

    folder = export.export_knn(
        classifier.served,
        Path(settings.saved_models) / settings.name,
        pipeline=knn,
        index=before_knn(knn, values[: embeddings.indexed]),
        index_labels=labels[: embeddings.indexed],
        index_paths=catalog.paths[: embeddings.indexed],
        novelty_limit=limit,
        card={
            **manifest,
            "backbone": card["backbone"],
            "image_size": card["image_size"],
            "threshold": 0.5,
            **catalog.about(),
            "training_digests": catalog.training_digests() | classifier.served.training_digests(),
            "seed": settings.seed,
            "metrics": {s: {m: results[s][m] for m in scoring_classifier.HEADLINE} for s in results
                        if s in ("val", "test")},
            "input": card["input"],
            "limits": card["limits"],
            "tensorflow": tf.__version__,
        },
        write_beside=write_beside,
        resumed=settings.resume,
    )  # fmt: skip
    if not agreement:  # exported before an interruption
        agreement.update(agree(folder))
    results["model"]["saved_model"] = str(folder)
    results["served_agreement"] = agreement
    run.write_metrics(results)
    log.info("KNN %s", scoring_classifier.result_line("test", results["test"]))
    log.info("classifier %s", scoring_classifier.result_line("test", classifier_results["test"]))
    log.info(
        "SavedModel and pickle agree on %d of %d test images\nrun:         %s\nSavedModel:  %s",
        *(agreement["equal"], agreement["images"], run.directory, folder),
    )
    return run


def resolve(settings: FitKnn, classifier: Classifier) -> FitKnn:
    """Fill in data, seed and name from the classifier; raise UserError if its data are unknown."""
    known = classifier.settings
    if not settings.data and known is None:
        raise UserError("a SavedModel does not record where its training images are: give --data")
    check_numbers(settings)
    settings = dataclasses.replace(
        settings,
        data=settings.data or (known or {})["data"],
        seed=classifier.served.card.get("seed", 0) if settings.seed is None else settings.seed,
        name=settings.name or f"{classifier.served.card['name']}-knn",
    )
    reserve_run(settings.logs, "knn", settings.name, settings)
    versions.check_saved_models(settings.saved_models, settings.name)
    return settings
