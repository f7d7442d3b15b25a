"""Figures of radiographs in a grid."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def radiograph_grid(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 6, heading: str = ""
) -> Figure:
    """Draw radiographs uint8 [N, S, S, 1] in a grid, with a title above each."""
    rows = max(1, -(-len(images) // columns))
    titles = [
        "\n".join(w for line in title.splitlines() for w in textwrap.wrap(line, 40))
        for title in titles
    ]
    lines = 1 + max([0, *(title.count("\n") for title in titles)])
    width, height, top = 2.1, 2.1 + 0.14 * lines, 0.35 if heading else 0.0
    figure = plt.figure(figsize=(width * columns, height * rows + top))
    # One pair of axes in inches: the layout of a dozen pairs would take longer than the drawing.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * columns), ylim=(0, height * rows + top))
    axes.axis("off")
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, bottom = k % columns * width + 0.05, (rows - 1 - k // columns) * height + 0.05
        extent = (left, left + 2.0, bottom, bottom + 2.0)
        axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        axes.text(left + 1.0, bottom + 2.03, title, fontsize=7, ha="center", va="bottom")
    axes.text(width * columns / 2, height * rows + 0.1, heading, fontsize=10, ha="center")
    return figure


def top_losses(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    *,
    count: int = 12,
) -> Figure:
    """Draw the misclassified radiographs with the lowest probability of the true class."""
    wrong = np.flatnonzero(predicted != labels)
    true_probabilities = probabilities[wrong, labels[wrong]]
    shown = wrong[np.argsort(true_probabilities, kind="stable")][:count]
    titles = [
        f"true {classes[labels[i]]}\n"
        f"predicted {classes[predicted[i]]} {probabilities[i, predicted[i]]:.2f}"
        for i in shown
    ]
    heading = f"{len(wrong)} of {len(labels)} misclassified; the {len(shown)} with the largest loss"
    return radiograph_grid(images[shown], titles, heading=heading)
