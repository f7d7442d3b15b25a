"""Figures of nearest neighbours and of t-SNE."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cxr_tf.figures.style import CYCLE, class_colour


def knn_grid(candidates: Sequence[dict], chosen: dict) -> Figure:
    """Draw balanced accuracy against k for every representation, metric and weighting.

    The upper row shows validation, the lower row its perturbed copy. The candidate that is chosen
    by the mean of both is marked.
    """
    spaces = list(dict.fromkeys(c["representation"] for c in candidates))
    figure, panels = plt.subplots(
        2,
        len(spaces),
        figsize=(1.2 + 3.6 * len(spaces), 6.4),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    rows = (
        ("balanced_accuracy", "balanced accuracy,\nvalidation"),
        ("stressed_balanced_accuracy", "balanced accuracy,\nperturbed validation"),
    )
    for column, space in enumerate(spaces):
        of_space = [c for c in candidates if c["representation"] == space]
        lines = dict.fromkeys((c["metric"], c["weights"]) for c in of_space)
        for axes, (key, label) in zip(panels[:, column], rows, strict=True):
            for metric, weights in lines:
                line = [c for c in of_space if (c["metric"], c["weights"]) == (metric, weights)]
                axes.plot(
                    [c["k"] for c in line],
                    [c[key] for c in line],
                    "o-" if weights == "uniform" else "o--",
                    color=CYCLE[0] if metric == "euclidean" else CYCLE[1],
                    markerfacecolor=None if weights == "uniform" else "white",
                    markersize=3,
                    linewidth=1,
                    label=f"{metric}, {weights}",
                )
            if space == chosen["representation"]:
                axes.plot(
                    chosen["k"], chosen[key], "o", markersize=12, color="black",
                    markerfacecolor="none",
                    label=f"chosen: k = {chosen['k']}, {chosen['metric']}, {chosen['weights']}",
                )  # fmt: skip
            axes.set_xscale("log")
            axes.grid(color="0.92")
            if column == 0:
                axes.set_ylabel(label)
        panels[0, column].set_title(space)
        panels[1, column].set_xlabel("number of neighbours k")
        ticks = [k for k in (1, 3, 5, 11, 25, 51, 101) if k <= max(c["k"] for c in of_space)]
        panels[1, column].set_xticks(ticks, [str(k) for k in ticks])
        panels[1, column].minorticks_off()
    column = spaces.index(chosen["representation"])
    handles, labels = panels[0, column].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def tsne_map(
    panels: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray,
    is_test: np.ndarray,
    wrong: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """Draw t-SNE maps side by side.

    panels: (title, float [N, 2]) of each map; labels: int [N], shown as colours; is_test: bool [N],
    shown as dark rims; wrong: bool [N], test images that the KNN misclassifies, shown as crosses.
    """
    figure, drawn = plt.subplots(
        1,
        len(panels),
        figsize=(6.2 * len(panels), 6.6),
        layout="constrained",
        squeeze=False,
    )
    # In random order; otherwise the last class would cover the others.
    order = np.random.default_rng(0).permutation(len(labels))
    for axes, (title, plane) in zip(drawn[0], panels, strict=True):
        colours = np.array([class_colour(c, k) for k, c in enumerate(classes)])
        others, tested = order[~is_test[order]], order[is_test[order]]
        axes.scatter(*plane[others].T, s=7, c=colours[labels[others]], alpha=0.45, linewidths=0)
        axes.scatter(
            *plane[tested].T, s=20, c=colours[labels[tested]], edgecolors="black", linewidths=0.6
        )
        axes.scatter(*plane[wrong].T, s=55, c="black", marker="x", linewidths=1.3)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    handles = [
        plt.Line2D([], [], linestyle="", marker="o", color=class_colour(c, k), label=c)
        for k, c in enumerate(classes)
    ]
    test: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "color": "white",
        "markeredgecolor": "black",
    }
    cross: dict[str, Any] = {"linestyle": "", "marker": "x", "color": "black"}
    handles += [
        plt.Line2D([], [], **test, label="test (dark rim)"),
        plt.Line2D([], [], **cross, label="test, misclassified by KNN"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def neighbor_table(
    images: np.ndarray,
    titles: Sequence[str],
    neighbours: Sequence[Sequence[tuple[str, float]]],
    classes: Sequence[str],
) -> Figure:
    """Draw radiographs with their nearest training cases, one row each.

    images: uint8 [R, 1 + K, S, S], the query first; titles: one for each of the R queries;
    neighbours: (class, distance) of the K neighbours of each query. Frames have the colour of the
    class.
    """
    rows, columns = images.shape[:2]
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(2.0 * columns, 2.35 * rows),
        layout="constrained",
        squeeze=False,
    )
    for i, j in np.ndindex(rows, columns):
        axes: Any = panels[i, j]
        axes.imshow(images[i, j], cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        if j == 0:
            axes.set_title(titles[i], fontsize=8, fontweight="bold")
            for side in axes.spines.values():
                side.set(color="black", linewidth=1)
            continue
        name, distance = neighbours[i][j - 1]
        colour = class_colour(name, classes.index(name))
        axes.set_title(f"{j}. {name}\ndistance {distance:.3g}", fontsize=8, color=colour)
        for side in axes.spines.values():
            side.set(color=colour, linewidth=3)
    return figure
