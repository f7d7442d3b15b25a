"""Figures of an autoencoder: training curves, scores and reconstructions."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cxr_tf.figures.style import CLASS_COLOURS, CYCLE, class_colour


def restoration_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Draw the loss on healthy images and the AUROC by epoch; mark the chosen epoch."""
    epochs = [h["epoch"] for h in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(
        epochs, [h["train_loss"] for h in history], "o-", color=CYCLE[0], markersize=3,
        label="training",
    )  # fmt: skip
    left.plot(
        epochs, [h["val_loss"] for h in history], "o-", color=CYCLE[1], markersize=3,
        label="validation",
    )  # fmt: skip
    left.set(title="loss on healthy images", yscale="log", ylabel="loss")
    for which in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:g}"))  # not powers of ten: their markup is disabled
    right.plot(epochs, [h["val_auroc"] for h in history], "o-", color=CYCLE[0], markersize=3)
    right.set(title="AUROC on validation, healthy vs. pneumonia", ylabel="AUROC")
    for axes in (left, right):
        axes.axvline(best_epoch, color="0.6", linestyle=":", label=f"selected epoch {best_epoch}")
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.legend(fontsize=8)
    return figure


def score_histogram(scores: np.ndarray, findings: np.ndarray, threshold: float) -> Figure:
    """Draw the distributions of anomaly scores float [N] by finding str [N], and the threshold."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    # A few outliers would squeeze all other images into one bar.
    bins = np.linspace(scores.min(), max(np.quantile(scores, 0.99), threshold * 1.1), 41)
    order = [f for f in CLASS_COLOURS if f in findings]
    order += [f for f in np.unique(findings) if f not in order]
    for index, finding in enumerate(order):
        chosen = np.minimum(scores[findings == finding], bins[-1])
        axes.hist(
            chosen, bins.tolist(), density=True, alpha=0.5, color=class_colour(finding, index),
            label=f"{finding} (n = {len(chosen)})",
        )  # fmt: skip
    axes.axvline(threshold, color="black", linewidth=1, label=f"threshold {threshold:.3g}")
    axes.set(xlabel="anomaly score (last bar: all higher scores)", ylabel="density")
    axes.legend(fontsize=8)
    return figure


def reconstructions(
    images: np.ndarray,
    reconstructed: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    *,
    brightest: float,
) -> Figure:
    """Draw the original, reconstruction and anomaly map of each image, one image per column.

    images: uint8 [N, S, S, 1]; reconstructed: float32 [N, S, S] in 0..255; maps: float32 [N, S, S],
    all drawn on the scale from 0 to `brightest`, so that they can be compared.
    """
    count = len(images)
    figure, panels = plt.subplots(
        3, count, figsize=(1.7 * count + 0.9, 5.6), layout="constrained", squeeze=False
    )
    for column in range(count):
        panels[0, column].imshow(images[column, ..., 0], cmap="gray", vmin=0, vmax=255)
        panels[0, column].set_title(titles[column], fontsize=8)
        panels[1, column].imshow(reconstructed[column], cmap="gray", vmin=0, vmax=255)
        drawn = panels[2, column].imshow(maps[column], cmap="inferno", vmin=0, vmax=brightest)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for axes, name in zip(panels[:, 0], ("original", "reconstruction", "anomaly map"), strict=True):
        axes.set_ylabel(name, fontsize=8)
    figure.colorbar(drawn, ax=panels[2, :].tolist(), shrink=0.8, label="anomaly")
    return figure
