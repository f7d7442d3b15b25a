"""Figures of a classifier: curves, confusion matrix, calibration, training, comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as sk

from cxr_tf.figures.style import CYCLE, class_colour, drawn
from cxr_tf.metrics.calibration import reliability
from cxr_tf.metrics.conformal import risk_coverage as risk_coverage_curve


def roc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    threshold: float | None = None,
) -> Figure:
    """Draw the ROC curve of the second of two classes, or of each of several versus the rest.

    labels: int [N]; probabilities: [N, C]; threshold: marked as the operating point.
    """
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for k in drawn(classes):
        positive = labels == k
        if positive.all() or not positive.any():
            continue
        false_positive_rate, sensitivity, _ = sk.roc_curve(positive, probabilities[:, k])
        area = sk.roc_auc_score(positive, probabilities[:, k])
        colour = class_colour(classes[k], k)
        label = f"{classes[k]}: AUROC {area:.3f}"
        axes.plot(false_positive_rate, sensitivity, color=colour, label=label)
        if threshold is not None and len(classes) == 2:
            predicted = probabilities[:, k] >= threshold
            axes.plot(
                predicted[~positive].mean(),
                predicted[positive].mean(),
                "o",
                color=colour,
                label=f"operating point {threshold:.3g}",
            )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:  # no curve if there is only one class
        axes.legend(loc="lower right")
    return figure


def precision_recall(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Draw precision against recall; a dotted line marks chance, the share of positives."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for k in drawn(classes):
        positive = labels == k
        if not positive.any():
            continue
        precision, recall, _ = sk.precision_recall_curve(positive, probabilities[:, k])
        area = sk.average_precision_score(positive, probabilities[:, k])
        colour = class_colour(classes[k], k)
        axes.plot(recall, precision, color=colour, label=f"{classes[k]}: AUPRC {area:.3f}")
        axes.axhline(positive.mean(), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    return figure


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix: counts, shaded by their share of the true class."""
    counts = sk.confusion_matrix(labels, predicted, labels=range(len(classes)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.9 * len(classes)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axes.text(
            j,
            i,
            f"{counts[i, j]}\n{share[i, j]:.0%}",
            ha="center",
            va="center",
            color="white" if share[i, j] > 0.5 else "black",
        )
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes)
    axes.set_yticks(ticks, classes, rotation=90, va="center")
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def reliability_diagram(labels: np.ndarray, probabilities: np.ndarray, ece: float) -> Figure:
    """Draw observed frequency against predicted probability, and the number of images per bin."""
    mean, share, counts = reliability(labels, probabilities)
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(5, 6), layout="constrained", height_ratios=(4, 1), sharex=True
    )
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(mean, share, "o-", color=CYCLE[0], label=f"expected calibration error {ece:.3f}")
    axes.set(ylabel="observed frequency", ylim=(-0.02, 1.02))
    axes.legend(loc="lower right")
    below.bar(mean, counts, width=0.04, color="0.6")
    below.set(
        xlabel="predicted probability" if probabilities.shape[1] == 2 else "confidence",
        ylabel="images",
        xlim=(-0.02, 1.02),
    )
    return figure


def risk_coverage(
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    scores: Mapping[str, Any],
) -> Figure:
    """Draw the risk-coverage curve: the error rate against the share of images decided.

    The most certain images are decided first. labels, predicted: int [N]; probabilities: [N, C];
    scores: the scores of the split. If they include prediction sets, the point for deciding only
    the images with a one-class set is marked.
    """
    answered, error_rate = risk_coverage_curve(labels, probabilities, predicted)
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.plot(answered, error_rate, color=CYCLE[0], label="by probability of the predicted class")
    if np.isfinite(scores.get("accuracy_decided", np.nan)):
        axes.plot(
            1 - scores["undecided"],
            1 - scores["accuracy_decided"],
            "o",
            color=CYCLE[1],
            label="prediction sets of one class",
        )
    axes.set(
        xlabel="share of images decided",
        ylabel="error rate among these images",
        xlim=(-0.02, 1.02),
        ylim=(0, max(0.05, 1.1 * float(error_rate.max()))),
    )
    axes.legend(loc="upper left", fontsize=8)
    return figure


def shifts(by_shift: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> Figure:
    """Draw the sensitivity for each class under acquisition shifts, one row per shift."""
    rows = np.arange(len(by_shift))
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(by_shift) + 1.1), layout="constrained")
    recalls = np.array([[table[name] for name in classes] for table in by_shift.values()])
    axes.hlines(rows, recalls.min(axis=1), recalls.max(axis=1), color="0.8", zorder=0)
    for k, name in enumerate(classes):
        axes.plot(recalls[:, k], rows, "o", color=class_colour(name, k), label=name)
    axes.axhline(0.5, color="0.8", linewidth=0.8)  # below the unchanged images
    axes.set_yticks(rows, list(by_shift))
    axes.invert_yaxis()
    axes.set(xlabel="sensitivity for each class", xlim=(-0.02, 1.02))
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper center", ncols=len(classes), frameon=False)
    return figure


# Labels of curves, by the beginning of their key in the history.
CURVES = {"train": "training", "val": "validation", "val_stressed": "perturbed validation"}


def training_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Draw the loss, AUROC and learning rate by epoch; mark the selected epoch."""
    epochs = [h["epoch"] for h in history]
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    contents = (
        ("loss", ("train_loss", "val_loss", "val_stressed_loss")),
        ("AUROC on validation", ("val_auroc", "val_stressed_auroc")),
        ("learning rate", ("learning_rate",)),
    )
    for axes, (title, keys) in zip(panels, contents, strict=True):
        for index, key in enumerate(keys):
            axes.plot(
                epochs,
                [h[key] for h in history],
                "o-",
                color=CYCLE[index],
                markersize=3,
                label=CURVES.get(key.rsplit("_", 1)[0], key),
            )
        axes.axvline(best_epoch, color="0.7", linewidth=1, linestyle="--")
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(keys) > 1:
            axes.legend(fontsize=8)
    return figure


# Titles of scores in figures, if they differ from the key.
SCORE_TITLES = {"auroc": "AUROC", "recall": "sensitivity", "f1": "F1"}


def comparison(
    names: Sequence[str], tables: Sequence[dict], metrics: Sequence[str], chosen: str
) -> Figure:
    """Draw the scores of several models with 95 % confidence intervals, one panel per metric."""
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(2.6 * len(metrics), 0.6 * len(names) + 1.6), layout="constrained"
    )
    for axes, metric in zip(np.atleast_1d(panels), metrics, strict=True):
        for row, (name, table) in enumerate(zip(names, tables, strict=True)):
            # With a single patient there is no interval.
            low, high = table["ci95"].get(metric, (table[metric], table[metric]))
            colour = CYCLE[0] if name == chosen else "0.5"
            axes.plot([low, high], [row, row], color=colour, linewidth=2)
            axes.plot(table[metric], row, "o", color=colour)
            axes.text(table[metric], row - 0.14, f"{table[metric]:.3f}", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is np.atleast_1d(panels)[0] else [])
        # The first model on top, as in the table.
        axes.set(title=SCORE_TITLES.get(metric, metric), ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="x", color="0.9")
    return figure
