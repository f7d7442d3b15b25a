"""Score a classifier on a split: table, predictions, figures, TensorBoard."""

from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.data import catalog
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.data.sources import medmnist
from cxr_tf.runs import Run
from cxr_tf.scoring.groups import group_scores
from cxr_tf.serving import export

HEADLINE = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")


def score_split(
    run: Run,
    split: str,
    part: ImageDataset,
    probabilities: np.ndarray,
    threshold: float,
    *,
    bootstrap_samples: int,
) -> dict[str, Any]:
    """Scores with intervals; writes the predictions."""
    predicted = export.decide(tf.constant(probabilities), threshold).numpy()
    run.write_predictions(split, part.catalog, part.labels, probabilities, predicted, part.classes)
    return score(part, probabilities, predicted, bootstrap_samples=bootstrap_samples)


def score(
    part: ImageDataset,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of one split for `metrics.json`: scores, counts and 95 % intervals."""
    table: dict[str, Any] = metrics.classification_scores(
        part.labels, probabilities, predicted, part.classes
    )
    if part.catalog.published_split and part.classes == catalog.task_classes("binary"):
        table |= medmnist.scores(part.labels, probabilities)
    table["images"], table["patients"] = len(part.labels), len(set(part.catalog.patients))
    table["ci95"] = metrics.confidence_intervals(
        part.labels,
        probabilities,
        predicted,
        part.catalog.patients,
        part.classes,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )
    groups, intervals = group_scores(
        part, predicted, bootstrap_samples=bootstrap_samples, seed=seed
    )
    table |= groups
    table["ci95"] |= intervals
    return table


def draw_split(
    run: Run,
    split: str,
    part: ImageDataset,
    probabilities: np.ndarray,
    threshold: float,
    writer: tf.summary.SummaryWriter,
    scores: dict[str, Any],
) -> None:
    """The figures of one split, as PNGs and in TensorBoard, with its PR curves."""
    labels, classes = part.labels, part.classes
    predicted = export.decide(tf.constant(probabilities), threshold).numpy()
    drawn = {
        "roc": figures.roc(labels, probabilities, classes, threshold),
        "precision_recall": figures.precision_recall(labels, probabilities, classes),
        "confusion": figures.confusion(labels, predicted, classes),
        "reliability": figures.reliability_diagram(labels, probabilities, scores["ece"]),
        "most_wrong": figures.top_losses(part.images, labels, probabilities, predicted, classes),
        "samples": sample_predictions(part, probabilities, predicted),
    }
    for name, figure in drawn.items():
        run.write_figure(f"{name}-{split}", figure, writer)
    write_pr_curves(writer, split, labels, probabilities, classes)


def write_pr_curves(
    writer: tf.summary.SummaryWriter,
    split: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...],
) -> None:
    """For TensorBoard's PR-curve plugin: the second of two classes, or every one of more."""
    from tensorboard.plugins.pr_curve import summary as pr_curve

    with writer.as_default(step=0):
        for k in range(1 if len(classes) == 2 else 0, len(classes)):
            summary = pr_curve.pb(
                f"{split}/{classes[k]}", labels=labels == k, predictions=probabilities[:, k]
            )
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)


def sample_predictions(part: ImageDataset, probabilities: np.ndarray, predicted: np.ndarray) -> Any:
    """A dozen radiographs evenly drawn from the split, with what was predicted of them."""
    shown = np.linspace(0, len(part.labels) - 1, min(12, len(part.labels))).astype(int)
    titles = [
        f"true {part.classes[part.labels[i]]}\n"
        f"predicted {part.classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    return figures.radiograph_grid(part.images[shown], titles)


def result_line(split: str, scores: dict[str, Any]) -> str:
    """The headline scores with their intervals, as one line."""
    headline = ("auroc", "accuracy", "recall", "specificity", "f1")
    return f"{split}: " + ", ".join(f"{m} {metrics.with_interval(scores, m)}" for m in headline)
