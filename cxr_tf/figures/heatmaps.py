"""Figures of heatmaps over radiographs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def heatmap_overlay(image: np.ndarray, heat: np.ndarray, title: str, unit: str) -> Figure:
    """Draw a radiograph and, beside it, its heatmap as an overlay with a colour bar.

    image: uint8 [S, S, 1]; heat: float [S, S], red above 0, blue below; unit: colour bar label.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), layout="constrained")
    gray = np.squeeze(image)
    left.imshow(gray, cmap="gray", vmin=0, vmax=255)
    drawn = _draw_heat(right, gray, heat)
    for axes in (left, right):
        axes.axis("off")
    figure.colorbar(drawn, ax=right, fraction=0.046, pad=0.02, label=unit)
    figure.suptitle(title, fontsize=9)
    return figure


def heatmap_sheet(
    images: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    titles: Sequence[str],
    *,
    heading: str = "",
    pairs: int = 3,
) -> Figure:
    """Draw radiographs uint8 [N, S, S, 1], each with its heatmaps beside it.

    maps: (name, float [N, S, S]) of each method. With one method, a row shows `pairs` pairs of
    radiograph and heatmap; with several methods, a row shows one radiograph. Each heatmap has its
    own scale; its range is written above it.
    """
    per_row = pairs if len(maps) == 1 else 1
    rows = -(-len(images) // per_row)
    columns = per_row * (1 + len(maps))
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(1.85 * columns, 2.25 * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axes in panels.flat:
        axes.axis("off")
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        gray = np.squeeze(image)
        row, column = divmod(k, per_row)
        column *= 1 + len(maps)
        panels[row, column].imshow(gray, cmap="gray", vmin=0, vmax=255)
        panels[row, column].set_title(title, fontsize=7)
        for offset, (name, heat) in enumerate(maps, start=1):
            axes = panels[row, column + offset]
            _draw_heat(axes, gray, heat[k])
            axes.set_title(f"{name}\n{_range_of(heat[k])}", fontsize=7)
    if heading:
        figure.suptitle(heading, fontsize=9)
    return figure


def heatmaps_alone(
    mean: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    titles: Sequence[str],
    *,
    heading: str = "",
    per_row: int = 6,
) -> Figure:
    """Draw heatmaps over the mean radiograph [S, S, 1] instead of over each radiograph.

    maps: (name, float [N, S, S]) of each method. The mean radiograph shows where the lungs are but
    no individual patient, so the figure can be shared even if radiographs of patients must not be.
    """
    panels = [(title, name, heat[k]) for k, title in enumerate(titles) for name, heat in maps]
    per_row = per_row if len(maps) == 1 else len(maps)
    rows = -(-len(panels) // per_row)
    figure, grid = plt.subplots(
        rows,
        per_row,
        figsize=(1.85 * per_row, 2.35 * rows + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, name, heat) in zip(grid.flat, panels, strict=False):
        _draw_heat(axes, np.squeeze(mean), heat)
        axes.set_title(f"{title}\n{name} {_range_of(heat)}", fontsize=7)
    if heading:
        figure.suptitle(heading, fontsize=9)
    return figure


def mean_heatmaps(
    images: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray]],
    labels: np.ndarray,
    classes: Sequence[str],
    outside: np.ndarray,
    *,
    heading: str = "",
) -> Figure:
    """Draw the mean heatmap of each class over its mean radiograph; rows are methods.

    Each map is scaled to its own peak, so that all count equally: otherwise the few radiographs on
    which the network is uncertain, and the probability changes most, would dominate the mean.

    images: uint8 [N, S, S, 1]; maps: (name, float [N, S, S]) of each method; labels: int [N];
    outside: the region outside the chest, bool [S, S]. It is outlined, and the share of the
    positive heat inside it is written above the panel.
    """
    figure, panels = plt.subplots(
        len(maps),
        len(classes),
        figsize=(3.5 * len(classes), 3.15 * len(maps) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for (name, heat), line in zip(maps, panels, strict=True):
        for k, axes in enumerate(line):
            axes.axis("off")
            rows = labels == k
            if not rows.any():
                axes.set_title(f"no {classes[k]} image", fontsize=9)
                continue
            peaks = np.maximum(np.abs(heat[rows]).max((1, 2), keepdims=True), 1e-12)
            mean = (heat[rows] / peaks).mean(axis=0)
            drawn = _draw_heat(axes, np.squeeze(images[rows].mean(axis=0)), mean)
            axes.contour(outside, [0.5], colors="white", linewidths=0.8, linestyles="--")
            positive = np.maximum(heat[rows], 0)
            totals = positive.sum((1, 2))
            shares = positive[:, outside].sum(axis=1)[totals > 0] / totals[totals > 0]
            share = f"{shares.mean():.0%}" if len(shares) else "none"
            axes.set_title(
                f"{name}: {classes[k]}, {rows.sum()} images\n"
                f"{share} of the heat outside the chest\n(uniform heat: {outside.mean():.0%})",
                fontsize=9,
            )
            figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def _draw_heat(axes: Any, gray: np.ndarray, heat: np.ndarray) -> Any:
    """Draw heat over a grey image: red above 0, blue below, transparent near 0."""
    limit = max(float(np.abs(heat).max()), 1e-12)
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255)
    strength = np.abs(heat) / limit
    # Faint heat must not veil the lungs, nor strong heat hide the anatomy below it.
    return axes.imshow(
        heat, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.75 * np.clip(strength, 0, 1) ** 0.8
    )


def _range_of(heat: np.ndarray) -> str:
    return f"{heat.min():+.2g} to {heat.max():+.2g}"
