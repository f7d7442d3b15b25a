"""Predictions, figures and projector files of a nearest-neighbours run."""

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import figures
from cxr_tf.config import FitKnn
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import dataset, decoding
from cxr_tf.files import write_csv
from cxr_tf.neighbors import projection
from cxr_tf.neighbors.embeddings import Classifier, Embeddings, stored_before
from cxr_tf.runs import Run
from cxr_tf.scoring import classifier as scoring_classifier

THUMBNAIL = 48  # pixels


def novelty_of(distances: np.ndarray, limit: float) -> np.ndarray:
    """Return the distance to the k-th neighbour divided by `limit`, float [N].

    distances: [N, k] ascending. `limit` is the quantile NOVELTY_QUANTILE of the distance to the
    k-th neighbour on validation: a radiograph with a novelty above 1 is farther from the training
    data than 99 of 100 validation radiographs.
    """
    return distances[:, -1] / limit


def write_predictions(
    run: Run,
    split: str,
    part: dataset.ImageDataset,
    shares: np.ndarray,
    predicted: np.ndarray,
    novelty: np.ndarray,
) -> None:
    """Write `predictions-<split>.csv` as for a classifier, with an additional column `novelty`."""
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
    part: dataset.ImageDataset,
    shares: np.ndarray,
    predicted: np.ndarray,
    scores: dict[str, Any],
    writer: tf.summary.SummaryWriter,
) -> None:
    """Draw the figures of one split, and log the headline scores as scalars in TensorBoard."""
    labels, classes = part.labels, part.classes
    for name, figure in {
        "roc": figures.roc(labels, shares, classes),
        "precision_recall": figures.precision_recall(labels, shares, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, shares, scores["ece"]),
    }.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    scoring_classifier.write_pr_curves(writer, split, labels, shares, classes)
    with writer.as_default(step=0):
        for metric in scoring_classifier.HEADLINE:
            tf.summary.scalar(f"final/{split}_{metric}", scores[metric])


def draw_neighbors(
    catalog: data_catalog.Catalog,
    labels: np.ndarray,
    test: slice,
    shares: np.ndarray,
    predicted: np.ndarray,
    distances: np.ndarray,
    rows: np.ndarray,
    classes: tuple[str, ...],
    size: int,
) -> Any:
    """Draw correct, wrong and uncertain test radiographs with their nearest training cases."""
    truth, label = labels[test], predicted[test]
    margin = np.diff(np.sort(shares, axis=1)[:, -2:], axis=1)[:, 0]
    by_margin = np.argsort(-margin, kind="stable")
    kinds = {
        "correct": [i for i in by_margin if label[i] == truth[i]],
        "wrong": [i for i in by_margin if label[i] != truth[i]],
        "uncertain": list(by_margin[::-1]),
    }
    picked: list[tuple[str, int]] = []
    for kind, candidates in kinds.items():
        # One of each class where possible, and none twice.
        fresh = [i for i in candidates if i not in [j for _, j in picked]]
        first = fresh[:1]
        other = [i for i in fresh[1:] if truth[i] != truth[first[0]]][:1] if first else []
        picked += [(kind, int(i)) for i in [*first, *(other or fresh[1:2])]]
    columns = min(5, rows.shape[1])
    paths = [catalog.paths[row] for _, i in picked for row in (test.start + i, *rows[i, :columns])]
    images, _ = decoding.load_images(paths, size)
    return figures.neighbor_table(
        images.reshape(len(picked), columns + 1, size, size),
        [
            f"{kind}: true {classes[truth[i]]}\n"
            f"predicted {classes[label[i]]} {shares[i, label[i]]:.2f}"
            for kind, i in picked
        ],
        [
            [(classes[labels[row]], float(d)) for row, d in zip(rows[i], distances[i], strict=True)]
            for _, i in picked
        ],
        classes,
    )


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
    """Project the embeddings before and after training; return the measures of both.

    Writes the figure `tsne` and the files of TensorBoard's projector.
    """
    assert settings.seed is not None
    catalog, classes = embeddings.catalog, classifier.served.classes
    drawn = projection.draw_points(len(catalog), settings.seed)
    shown = catalog.take(drawn)
    labels, is_test = embeddings.labels[drawn], drawn >= embeddings.rows("test").start
    held_out = predicted[drawn] >= 0  # training images are the index, and are not predicted
    wrong = held_out & (predicted[drawn] != labels)
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
                ("no" if w else "yes") if is_predicted else "in the index",
                classes[p] if is_predicted else "",
                r.patient,
                r.path,
            ]
            for r, y, w, is_predicted, p in zip(
                shown.radiographs, labels, wrong, held_out, predicted[drawn], strict=True
            )
        ],
        thumbnails=thumbnails[drawn],
    )
    return results
