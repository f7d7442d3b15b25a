"""Score a classifier on a split; write its predictions, figures and TensorBoard summaries."""

import logging
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.data import catalog
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.data.sources import medmnist
from cxr_tf.runs import Run
from cxr_tf.scoring import subgroups
from cxr_tf.serving import export

log = logging.getLogger(__name__)

HEADLINE = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")


def score_split(
    run: Run,
    split: str,
    part: ImageDataset,
    probabilities: np.ndarray,
    threshold: float,
    *,
    bootstrap_samples: int,
    set_thresholds: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write the predictions of a split, and return its scores with intervals."""
    predicted = export.decide(tf.constant(probabilities), threshold).numpy()
    run.write_predictions(split, part.catalog, part.labels, probabilities, predicted, part.classes)
    sets = None if set_thresholds is None else probabilities >= set_thresholds
    return score(part, probabilities, predicted, bootstrap_samples=bootstrap_samples, sets=sets)


def score(
    part: ImageDataset,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    *,
    bootstrap_samples: int,
    seed: int = 0,
    sets: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the scores, counts and 95 % intervals of one split, as written to `metrics.json`.

    sets: prediction sets, bool [N, C], whose coverage and size are scored too.
    """

    def scores(weights: np.ndarray | None = None) -> dict[str, float]:
        values = metrics.classification_scores(
            part.labels, probabilities, predicted, part.classes, weights
        )
        if sets is not None:
            values |= metrics.set_scores(part.labels, sets, predicted, part.classes, weights)
        if part.against is not None:
            values |= metrics.recall_against_shortcut(
                part.labels, predicted, part.against, part.classes, weights
            )
        return values

    table: dict[str, Any] = scores()
    if part.catalog.published_split and part.classes == catalog.task_classes("binary"):
        table |= medmnist.scores(part.labels, probabilities)
    table["images"], table["patients"] = len(part.labels), len(set(part.catalog.patients))
    table["counts"] = metrics.classification_counts(part.labels, predicted, part.classes)
    table["ci95"] = metrics.intervals(
        scores,
        part.catalog.patients,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        support=metrics.classification_support(
            part.labels, predicted, part.catalog.patients, part.classes
        ),
    )
    return table


def score_subgroups(
    part: ImageDataset,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of a classifier per subgroup; see `subgroups.score_subgroups`."""

    def scores(weights: np.ndarray) -> dict[str, float]:
        return metrics.classification_scores(
            part.labels, probabilities, predicted, part.classes, weights
        )

    return subgroups.score_subgroups(part, scores, bootstrap_samples=bootstrap_samples, seed=seed)


def draw_split(
    run: Run,
    split: str,
    part: ImageDataset,
    probabilities: np.ndarray,
    threshold: float,
    writer: tf.summary.SummaryWriter,
    scores: dict[str, Any],
) -> None:
    """Draw the figures of one split, as PNGs and in TensorBoard, including its PR curves."""
    labels, classes = part.labels, part.classes
    predicted = export.decide(tf.constant(probabilities), threshold).numpy()
    split_figures = {
        "roc": figures.roc(labels, probabilities, classes, threshold),
        "precision_recall": figures.precision_recall(labels, probabilities, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, probabilities, scores["ece"]),
        "most_wrong": figures.top_losses(part.images, labels, probabilities, predicted, classes),
        "samples": sample_predictions(part, probabilities, predicted),
        "risk_coverage": figures.risk_coverage(labels, probabilities, predicted, scores),
    }
    for name, figure in split_figures.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    write_pr_curves(writer, split, labels, probabilities, classes)


def write_pr_curves(
    writer: tf.summary.SummaryWriter,
    split: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
) -> None:
    """Write PR curves for TensorBoard: of the second of two classes, or of each of several."""
    from tensorboard.plugins.pr_curve import summary as pr_curve

    with writer.as_default(step=0):
        for k in range(1 if len(classes) == 2 else 0, len(classes)):
            summary = pr_curve.pb(
                f"{split}/{classes[k]}", labels=labels == k, predictions=probabilities[:, k]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)


def sample_predictions(part: ImageDataset, probabilities: np.ndarray, predicted: np.ndarray) -> Any:
    """Draw a dozen radiographs, evenly spaced over the split, with their predictions."""
    shown = np.linspace(0, len(part.labels) - 1, min(12, len(part.labels))).astype(int)
    titles = [
        f"true {part.classes[part.labels[i]]}\n"
        f"predicted {part.classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    return figures.radiograph_grid(part.images[shown], titles)


def result_line(split: str, scores: dict[str, Any]) -> str:
    """Format the headline scores with their intervals as one line."""
    headline = ("auroc", "accuracy", "recall", "specificity", "f1")
    line = f"{split}: " + ", ".join(
        f"{m} {metrics.with_interval(scores, m, counts=True)}" for m in headline
    )
    if "coverage" in scores:
        line += (
            f"\n{split}: prediction sets: coverage "
            f"{metrics.with_interval(scores, 'coverage')}, mean size {scores['set_size']:.2f}; "
            f"undecided {metrics.with_interval(scores, 'undecided')}, accuracy on the rest "
            f"{metrics.with_interval(scores, 'accuracy_decided')}"
        )
    return line
