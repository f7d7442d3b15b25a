"""Figures: functions that take arrays and return a matplotlib Figure."""

import matplotlib
from matplotlib import pyplot as plt

matplotlib.use("Agg")  # scripts run without a display
plt.rcParams["text.parse_math"] = False  # a $ in a file name or a label is plain text

from cxr_tf.figures.anomaly import reconstructions, restoration_curves, score_histogram
from cxr_tf.figures.classification import (
    comparison,
    confusion,
    precision_recall,
    reliability_diagram,
    risk_coverage,
    roc,
    shifts,
    training_curves,
)
from cxr_tf.figures.data import data_page
from cxr_tf.figures.heatmaps import heatmap_overlay, heatmap_sheet, heatmaps_alone, mean_heatmaps
from cxr_tf.figures.neighbors import knn_grid, neighbor_table, tsne_map
from cxr_tf.figures.radiographs import radiograph_grid, top_losses
from cxr_tf.figures.shortcuts import shortcut_audit
from cxr_tf.figures.style import CLASS_COLOURS, CYCLE, class_colour, drawn

__all__ = [
    "CLASS_COLOURS",
    "CYCLE",
    "class_colour",
    "comparison",
    "confusion",
    "data_page",
    "drawn",
    "heatmap_overlay",
    "heatmap_sheet",
    "heatmaps_alone",
    "knn_grid",
    "mean_heatmaps",
    "neighbor_table",
    "precision_recall",
    "radiograph_grid",
    "reconstructions",
    "reliability_diagram",
    "restoration_curves",
    "risk_coverage",
    "roc",
    "score_histogram",
    "shifts",
    "shortcut_audit",
    "top_losses",
    "training_curves",
    "tsne_map",
]
