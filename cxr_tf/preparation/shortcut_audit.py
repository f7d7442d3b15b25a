"""The shortcut audit of an inspected catalogue, and its figure."""

from typing import TYPE_CHECKING

import numpy as np

from cxr_tf import figures, metrics
from cxr_tf.data.acquisition.audit import Inspection
from cxr_tf.errors import UserError
from cxr_tf.runs import Run

if TYPE_CHECKING:
    import tensorflow as tf


def audit_inspected(found: Inspection, task: str) -> metrics.ShortcutAudit | None:
    """Return the audit of the readable images for a task; None if a class has too few patients.

    If the labels do not support the task, the findings themselves are the classes.
    """
    catalog = found.catalog
    supported = task != "labels" and _supports(found, task)
    classes = catalog.classes(task if supported else "labels")
    labels = catalog.labels(task if supported else "labels", classes)
    rows = np.setdiff1d(np.arange(len(catalog)), list(found.unreadable))
    patients = [catalog.patients[row] for row in rows]
    return metrics.audit_shortcuts(found.thumbnails[rows], labels[rows], patients, classes)


def write_audit(
    run: Run,
    found: Inspection,
    audit: metrics.ShortcutAudit,
    writer: "tf.summary.SummaryWriter",
) -> None:
    """Write `figures/shortcuts.png`, and the same figure to TensorBoard."""
    rows = np.setdiff1d(np.arange(len(found.catalog)), list(found.unreadable))
    run.write_figure(
        "shortcuts",
        figures.shortcut_audit(
            audit.by_statistic,
            audit.labels,
            audit.probabilities,
            audit.classes,
            found.thumbnails[rows],
            heading=audit.summary(),
        ),
        writer,
    )


def _supports(found: Inspection, task: str) -> bool:
    try:
        labels = found.catalog.labels(task)
    except UserError:
        return False
    return len(set(labels.tolist())) > 1
