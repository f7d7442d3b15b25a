"""The figure of a comparison of autoencoder variants."""

from collections.abc import Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cxr_tf.figures.style import CYCLE


def variants(tables: Mapping[str, Mapping[str, Any]], default: str) -> Figure:
    """Draw the AUROC of every anomaly score, alone and combined, with its 95 % interval."""
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(tables) + 1.2), layout="constrained")
    for k, (score, colour) in enumerate((("alone", "0.5"), ("joined", CYCLE[0]))):
        rows = [(row, t) for row, t in enumerate(tables.values()) if score in t]
        for row, own in rows:
            low, high = own["ci95"].get(score, (own[score],) * 2)
            axes.plot([low, high], [row + 0.2 * k] * 2, color=colour, linewidth=2)
        axes.plot(
            [own[score] for _, own in rows],
            [row + 0.2 * k for row, _ in rows],
            "o",
            color=colour,
            label="combined" if k else "alone",
        )
    if "joined" in tables[default]:
        axes.axvline(tables[default]["joined"], color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(range(len(tables)), list(tables), fontsize=8)
    axes.set(xlabel="AUROC on the validation set", ylim=(len(tables) - 0.5, -0.7))
    axes.grid(axis="x", color="0.9")
    axes.legend(fontsize=8)
    return figure
