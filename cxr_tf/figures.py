"""Every figure: takes arrays, returns a matplotlib Figure."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # scripts run where there is no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn import metrics as sk

from cxr_tf.metrics import reliability

# Blue, red, amber: told apart by colour-blind readers, and the same class has the same colour
# in every figure.
CLASS_COLOURS = {
    "normal": "#0072B2",
    "pneumonia": "#D55E00",
    "bacterial": "#D55E00",
    "viral": "#E69F00",
}
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def class_colour(name: str, index: int) -> str:
    """The colour of a class, or of the index-th thing where it is no known class."""
    return CLASS_COLOURS.get(name, _CYCLE[index % len(_CYCLE)])


def roc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    threshold: float | None = None,
) -> Figure:
    """ROC curve; with two classes of the second, else each class against the rest.

    labels int [N], probabilities [N, C]. `threshold` is marked as the operating point.
    """
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for k in _drawn(classes):
        positive = labels == k
        if positive.all() or not positive.any():
            continue
        false_alarm, sensitivity, _ = sk.roc_curve(positive, probabilities[:, k])
        area = sk.roc_auc_score(positive, probabilities[:, k])
        colour = class_colour(classes[k], k)
        axes.plot(false_alarm, sensitivity, color=colour, label=f"{classes[k]}: AUROC {area:.3f}")
        if threshold is not None and len(classes) == 2:
            called = probabilities[:, k] >= threshold
            axes.plot(
                called[~positive].mean(),
                called[positive].mean(),
                "o",
                color=colour,
                label=f"operating point {threshold:.3g}",
            )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


def precision_recall(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Precision against recall, with the share of positives as the line of chance."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for k in _drawn(classes):
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
    axes.legend(loc="lower left")
    return figure


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: counts, shaded by the share of the true class."""
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
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability_diagram(labels: np.ndarray, probabilities: np.ndarray, ece: float) -> Figure:
    """Observed share against predicted probability, with the number of images per bin."""
    mean, share, counts = reliability(labels, probabilities)
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(5, 6), layout="constrained", height_ratios=(4, 1), sharex=True
    )
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(mean, share, "o-", color=_CYCLE[0], label=f"expected calibration error {ece:.3f}")
    axes.set(ylabel="observed share", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")
    below.bar(mean, counts, width=0.04, color="0.6")
    below.set(
        xlabel="predicted probability" if probabilities.shape[1] == 2 else "confidence",
        ylabel="images",
        xlim=(-0.02, 1.02),
    )
    return figure


def training_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Loss, AUROC and learning rate by epoch; the chosen epoch is marked."""
    epochs = [h["epoch"] for h in history]
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    shown = (
        ("loss", ("train_loss", "val_loss", "val_stressed_loss")),
        ("AUROC on validation", ("val_auroc", "val_stressed_auroc")),
        ("learning rate", ("learning_rate",)),
    )
    for axes, (title, keys) in zip(panels, shown, strict=True):
        for index, key in enumerate(keys):
            axes.plot(
                epochs,
                [h[key] for h in history],
                "o-",
                color=_CYCLE[index],
                markersize=3,
                label=key.replace("val_stressed", "validation, stressed:")
                .replace("val_", "validation: ")
                .replace("train_", "training: ")
                .replace(":_", ": "),
            )
        axes.axvline(best_epoch, color="0.7", linewidth=1, linestyle="--")
        axes.set(xlabel="epoch", title=title)
        if len(keys) > 1:
            axes.legend(fontsize=8)
    return figure


def radiograph_grid(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 6, heading: str = ""
) -> Figure:
    """Radiographs uint8 [N, S, S, 1] with a title under each."""
    rows = max(1, -(-len(images) // columns))
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.1 * columns, 2.5 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axes in panels.flat:
        axes.axis("off")
    for axes, image, title in zip(panels.flat, images, titles, strict=False):
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=7)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def most_wrong(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    *,
    count: int = 12,
) -> Figure:
    """The misclassified radiographs whose true class was given the least probability."""
    wrong = np.flatnonzero(predicted != labels)
    of_truth = probabilities[wrong, labels[wrong]]
    shown = wrong[np.argsort(of_truth, kind="stable")][:count]
    titles = [
        f"true {classes[labels[i]]}\n"
        f"predicted {classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    heading = f"{len(wrong)} of {len(labels)} wrong; the {len(shown)} most wrong"
    return radiograph_grid(images[shown], titles, heading=heading)


def comparison(
    names: Sequence[str], tables: Sequence[dict], metrics: Sequence[str], chosen: str
) -> Figure:
    """Scores of several models with 95 % intervals, one panel a metric."""
    figure, panels = plt.subplots(
        1, len(metrics), figsize=(2.6 * len(metrics), 0.6 * len(names) + 1.6), layout="constrained"
    )
    for axes, metric in zip(np.atleast_1d(panels), metrics, strict=True):
        for row, (name, table) in enumerate(zip(names, tables, strict=True)):
            low, high = table["ci95"][metric]
            colour = _CYCLE[0] if name == chosen else "0.5"
            axes.plot([low, high], [row, row], color=colour, linewidth=2)
            axes.plot(table[metric], row, "o", color=colour)
            axes.text(table[metric], row + 0.14, f"{table[metric]:.3f}", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is np.atleast_1d(panels)[0] else [])
        axes.set(title=metric, ylim=(-0.5, len(names) - 0.3))
        axes.grid(axis="x", color="0.9")
    return figure


def _drawn(classes: Sequence[str]) -> Sequence[int]:
    """With two classes the curve of the positive one says all."""
    return (1,) if len(classes) == 2 else range(len(classes))
