"""Embeddings of a trained classifier -> k nearest neighbours: chosen, measured, stored, served.

    python scripts/fit_knn.py --classifier logs/classifier/vgg16-binary

Everything is chosen on validation (see `choice`). Test is looked at once, at the end.

What the probabilities are: shares of the vote, not calibrated. A share moves in steps of 1/k, and a
temperature cannot move a share of 0 or 1.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import evaluation, figures, projection, serving, store
from cxr_tf.comparison import Predictions, paired_tests
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import pipeline
from cxr_tf.errors import UserError
from cxr_tf.neighbors.choice import before_knn, fit_pipeline, search
from cxr_tf.neighbors.embeddings import (
    Classifier,
    Embeddings,
    embed,
    open_classifier,
    split_order,
    stored_before,
)
from cxr_tf.neighbors.storage import check_agreement, write_knn
from cxr_tf.runs import Run, open_run, refuse_existing, write_csv
from cxr_tf.settings import FitKnn, check_numbers

log = logging.getLogger(__name__)

# A radiograph is called unlike the training data above this quantile of validation.
NOVELTY_QUANTILE = 0.99

THUMBNAIL = 48  # pixels


def fit_knn(settings: FitKnn) -> Run:
    """The whole job; returns the finished run. Everything lands under its directory.

    Raises UserError on a user's mistake, before anything is written wherever it can be known.
    """
    classifier = open_classifier(settings.classifier, settings.engine)
    card, classes = classifier.served.card, classifier.served.classes
    settings = resolve(settings, classifier)
    assert settings.seed is not None
    keras.utils.set_random_seed(settings.seed)
    tf.config.experimental.enable_op_determinism()

    # ------------------------------------------------------------------ data
    check = functools.partial(
        catalogs.check, task=card["task"], classes=classes, allow_leakage=settings.allow_leakage
    )
    catalog = catalogs.open_catalog(settings.data, seed=settings.seed, task=card["task"])
    log.info(catalogs.describe(catalog))
    check(catalog)
    catalog, thumbnails = evaluation.decode(catalog, THUMBNAIL, skip=settings.skip_unreadable)
    check(catalog)
    order, indexed = split_order(catalog, catalog.labels(card["task"], classes))
    catalog, thumbnails = catalog.take(order), thumbnails[order]
    same_data = catalog.fingerprint() == card["data_fingerprint"]
    if not same_data:
        log.info("  note: %s", evaluation.OTHER_DATA)
    run = open_run(settings.logs, "knn", settings.name, settings, catalog)
    if run.finished:
        log.info("%s is finished already; nothing to do", run.directory)
        return run
    writer = run.writer()

    # ------------------------------------------------------------------ embeddings
    embeddings = embed(classifier, catalog, indexed, run, settings)
    val, test = embeddings.rows("val"), embeddings.rows("test")
    labels = embeddings.labels

    # ------------------------------------------------------------------ choice, on validation
    grid = search(embeddings)
    chosen = max(grid, key=lambda c: (c.score, -c.brier))
    log.info(
        "  chosen of %d: k = %d, %s, %s, %s weights (balanced accuracy on validation %.3f, "
        "stressed %.3f)",
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
        part = evaluation.Data(
            catalog.take(range(len(catalog))[where]), thumbnails[where], labels[where], classes
        )
        shares = knn.predict_proba(values[where])
        probabilities[split] = shares
        predicted[where] = shares.argmax(axis=1)
        novelty = novelty_of(distances[split], limit)
        results[split] = evaluation.score(
            part, shares, predicted[where], resamples=settings.resamples, seed=settings.seed
        )
        results[split]["novel"] = float(np.mean(novelty > 1))
        write_predictions(run, split, part, shares, predicted[where], novelty)
        own = embeddings.probabilities[: val.stop - val.start]
        if split == "test":
            own = embeddings.probabilities[val.stop - val.start :]
        own_predicted = serving.decide(tf.constant(own), card["threshold"]).numpy()
        classifier_results[split] = evaluation.score(
            part, own, own_predicted, resamples=settings.resamples, seed=settings.seed
        )
        if split == "test":
            results["knn_against_classifier"] = paired_tests(
                *(
                    Predictions(part.catalog.paths, part.catalog.patients, part.labels, p, y)
                    for p, y in ((shares, predicted[where]), (own, own_predicted))
                ),
                resamples=settings.resamples,
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
        "engine": classifier.served.engine_of("embed"),
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
        # The exported model embeds with TensorFlow, and between near neighbours OpenVINO's last
        # digits can decide: then both are given TensorFlow's.
        same = classifier.served.engine_of("embed") == "tensorflow"
        asked = values[test] if same else None
        return check_agreement(folder, knn, asked, catalog.paths[test], settings.batch_size)

    def write_beside(folder: Path) -> None:
        write_knn(knn, folder, manifest)
        agreement.update(agree(folder))

    folder = serving.export_knn(
        classifier.served,
        Path(settings.saved_models) / settings.name,
        pipeline=knn,
        index=knn[-1]._fit_X,
        index_labels=labels[: embeddings.indexed],
        index_paths=catalog.paths[: embeddings.indexed],
        novelty_limit=limit,
        card={
            **manifest,
            "backbone": card["backbone"],
            "image_size": card["image_size"],
            "threshold": 0.5,
            **catalog.about(),
            "learnt_from": catalog.learnt_from() | classifier.served.learnt_from(),
            "seed": settings.seed,
            "metrics": {s: {m: results[s][m] for m in evaluation.HEADLINE} for s in results
                        if s in ("val", "test")},
            "input": card["input"],
            "limits": card["limits"],
            "tensorflow": tf.__version__,
        },
        write_beside=write_beside,
        resumed=settings.resume,
    )  # fmt: skip
    if not agreement:  # taken over from before an interruption
        agreement.update(agree(folder))
    results["model"]["saved_model"] = str(folder)
    results["served_agreement"] = agreement
    run.write_metrics(results)
    log.info("KNN %s", evaluation.result_line("test", results["test"]))
    log.info("classifier %s", evaluation.result_line("test", classifier_results["test"]))
    log.info(
        "served and pickle agree on %d of %d test images\nrun:         %s\nSavedModel:  %s",
        *(agreement["equal"], agreement["images"], run.directory, folder),
    )
    return run


def resolve(settings: FitKnn, classifier: Classifier) -> FitKnn:
    """Fills in what was left to the classifier: data, seed, name. UserError where it cannot say."""
    known = classifier.settings
    if not settings.data and known is None:
        raise UserError(
            "a SavedModel does not say where the images are that it was trained on: give --data"
        )
    check_numbers(settings)
    settings = dataclasses.replace(
        settings,
        data=settings.data or (known or {})["data"],
        seed=classifier.served.card.get("seed", 0) if settings.seed is None else settings.seed,
        name=settings.name or f"{classifier.served.card['name']}-knn",
    )
    refuse_existing(settings.logs, "knn", settings.name, settings)
    store.check_saved_models(settings.saved_models, settings.name)
    return settings


# ---------------------------------------------------------------------- evaluation


def novelty_of(distances: np.ndarray, limit: float) -> np.ndarray:
    """Distance to the k-th neighbour over `limit`, float [N]; distances: [N, k] ascending.

    `limit` is the NOVELTY_QUANTILE of that distance over validation: above 1 a radiograph is
    farther from all training ones than 99 of 100 validation radiographs are.
    """
    return distances[:, -1] / limit


def write_predictions(
    run: Run,
    split: str,
    part: evaluation.Data,
    shares: np.ndarray,
    predicted: np.ndarray,
    novelty: np.ndarray,
) -> None:
    """`predictions-<split>.csv` as of a classifier, with a column `novelty`."""
    write_csv(
        run.directory / f"predictions-{split}.csv",
        ["path", "patient", "label", *part.classes, "predicted", "novelty"],
        [
            [r.path, r.patient, part.classes[y], *(f"{v:.8g}" for v in p), part.classes[k],
             f"{n:.6g}"]
            for r, y, p, k, n in zip(
                part.catalog.radiographs, part.labels, shares, predicted, novelty, strict=True
            )
        ],
    )  # fmt: skip


def draw_split(
    run: Run,
    split: str,
    part: evaluation.Data,
    shares: np.ndarray,
    predicted: np.ndarray,
    scores: dict[str, Any],
    writer: tf.summary.SummaryWriter,
) -> None:
    """ROC, PR, confusion and reliability of one split; the headline scores as scalars."""
    labels, classes = part.labels, part.classes
    for name, figure in {
        "roc": figures.roc(labels, shares, classes),
        "precision_recall": figures.precision_recall(labels, shares, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, shares, scores["ece"]),
    }.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    evaluation.write_pr_curves(writer, split, labels, shares, classes)
    with writer.as_default(step=0):
        for metric in evaluation.HEADLINE:
            tf.summary.scalar(f"final/{split}_{metric}", scores[metric])


def draw_neighbors(
    catalog: catalogs.Catalog,
    labels: np.ndarray,
    test: slice,
    shares: np.ndarray,
    predicted: np.ndarray,
    distances: np.ndarray,
    rows: np.ndarray,
    classes: tuple[str, ...],
    size: int,
) -> Any:
    """Two right, two wrong and two uncertain test radiographs, with their nearest training ones."""
    truth, called = labels[test], predicted[test]
    margin = np.diff(np.sort(shares, axis=1)[:, -2:], axis=1)[:, 0]
    by_margin = np.argsort(-margin, kind="stable")
    kinds = {
        "right": [i for i in by_margin if called[i] == truth[i]],
        "wrong": [i for i in by_margin if called[i] != truth[i]],
        "uncertain": list(by_margin[::-1]),
    }
    picked: list[tuple[str, int]] = []
    for kind, candidates in kinds.items():
        # One of each class where there is one, and none twice.
        fresh = [i for i in candidates if i not in [j for _, j in picked]]
        first = fresh[:1]
        other = [i for i in fresh[1:] if truth[i] != truth[first[0]]][:1] if first else []
        picked += [(kind, int(i)) for i in [*first, *(other or fresh[1:2])]]
    columns = min(5, rows.shape[1])
    paths = [catalog.paths[row] for _, i in picked for row in (test.start + i, *rows[i, :columns])]
    images, _ = pipeline.load_images(paths, size)
    return figures.neighbor_table(
        images.reshape(len(picked), columns + 1, size, size),
        [
            f"{kind}: true {classes[truth[i]]}\n"
            f"predicted {classes[called[i]]} {shares[i, called[i]]:.2f}"
            for kind, i in picked
        ],
        [
            [(classes[labels[row]], float(d)) for row, d in zip(rows[i], distances[i], strict=True)]
            for _, i in picked
        ],
        classes,
    )


# ---------------------------------------------------------------------- picture of the space


def project(
    run: Run,
    writer: tf.summary.SummaryWriter,
    classifier: Classifier,
    embeddings: Embeddings,
    values: np.ndarray,
    predicted: np.ndarray,
    thumbnails: np.ndarray,
    settings: FitKnn,
) -> dict[str, Any]:
    """t-SNE of the embedding, after and before training: figure, numbers, TensorBoard projector."""
    assert settings.seed is not None
    catalog, classes = embeddings.catalog, classifier.served.classes
    drawn = projection.draw_points(len(catalog), settings.seed)
    shown = catalog.take(drawn)
    labels, is_test = embeddings.labels[drawn], drawn >= embeddings.rows("test").start
    known = predicted[drawn] >= 0
    wrong = known & (predicted[drawn] != labels)
    planes = {"after training": projection.project(values[drawn], seed=settings.seed)}
    before = stored_before(classifier, shown, run, settings)
    if before is not None:
        planes = {
            "before training": projection.project(before, seed=settings.seed),
            **planes,
        }
    results: dict[str, Any] = {
        name.split()[0]: projection.quality(plane, labels, is_test, classes)
        for name, plane in planes.items()
    }
    results["points"] = len(drawn)
    figure = figures.tsne_map(
        [
            (f"{name}: {projection.caption(results[name.split()[0]])}", plane.plane)
            for name, plane in planes.items()
        ],
        labels,
        is_test,
        wrong & is_test,
        classes,
    )
    run.write_figure("tsne", figure, writer)
    projection.write_projector(
        run.directory,
        {
            f"{tensor} {name}": getattr(plane, attribute)
            for name, plane in reversed(planes.items())
            for tensor, attribute in (("t-SNE", "plane"), ("embedding, PCA-50", "coordinates"))
        },
        header=["class", "split", "correct", "predicted", "patient", "path"],
        rows=[
            [
                classes[y],
                r.split,
                ("no" if w else "yes") if asked else "in the index",
                classes[p] if asked else "",
                r.patient,
                r.path,
            ]
            for r, y, w, asked, p in zip(
                shown.radiographs, labels, wrong, known, predicted[drawn], strict=True
            )
        ],
        thumbnails=thumbnails[drawn],
    )
    return results
