"""The figure of the shortcut audit."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import special

from cxr_tf.figures.style import class_colour


def shortcut_audit(
    by_statistic: Mapping[str, float],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    images: np.ndarray,
    *,
    heading: str,
) -> Figure:
    """Draw the AUROC of each statistic, the separation of the classes, and example images.

    labels: int [N]; probabilities: float [N, C], of the cross-fitted regression; images: uint8
    [N, S, S] or [N, S, S, 1]. The examples of a class are the images whose statistics look most and
    least like that class.
    """
    figure = plt.figure(figsize=(13, 3.2 + 1.3 * len(classes)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.2, 1.3 * len(classes)))  # type: ignore[misc]
    bars, histogram = upper.subplots(1, 2)

    names = sorted(by_statistic, key=lambda k: by_statistic[k])
    values = [by_statistic[k] for k in names]
    bars.barh(range(len(names)), np.subtract(values, 0.5), left=0.5, color="0.6")
    bars.set_yticks(range(len(names)), [k.replace("_", " ") for k in names], fontsize=8)
    bars.set(xlim=(0.5, 1.0), xlabel="AUROC of the statistic alone")

    own = special.logit(np.clip(probabilities, 1e-4, 1 - 1e-4))
    edges = np.linspace(own[:, -1].min(), own[:, -1].max() + 1e-6, 30)
    for k, name in enumerate(classes):
        rows = labels == k
        weights = np.full(rows.sum(), 1 / max(rows.sum(), 1))
        histogram.hist(
            own[rows, -1], edges, weights=weights, histtype="step",
            color=class_colour(name, k), label=name,
        )  # fmt: skip
    histogram.set(
        xlabel=f"log odds of {classes[-1]} by the statistics", ylabel="share of the class"
    )
    histogram.legend(fontsize=8)

    shown = 6
    cells = lower.subplots(len(classes), 2 * shown, squeeze=False)
    for k, name in enumerate(classes):
        rows = np.flatnonzero(labels == k)
        order = rows[np.argsort(-probabilities[rows, k], kind="stable")]
        for position, cell in enumerate(cells[k]):
            cell.axis("off")
            typical = position < shown
            index = position if typical else position - 2 * shown
            if -len(order) <= index < len(order):
                image = np.squeeze(images[order[index]])
                cell.imshow(image, cmap="gray", vmin=0, vmax=255)
            if position in (0, shown):
                title = f"{name}: {'typical' if typical else 'against the shortcut'}"
                cell.set_title(title, fontsize=8, loc="left", color=class_colour(name, k))
    figure.suptitle(heading, fontsize=11)
    return figure
