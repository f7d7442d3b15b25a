"""The shortcut audit of the training images, and the framings that it leads to."""

import logging

import numpy as np
import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.data.acquisition_statistics import align
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run

log = logging.getLogger(__name__)


def audit_training_images(
    run: Run, train: ImageDataset, writer: tf.summary.SummaryWriter, *, seed: int
) -> metrics.ShortcutAudit | None:
    """Log, draw and return the shortcut audit of the training images.

    None where a class has too few patients for it.
    """
    audit = metrics.audit_shortcuts(
        train.images, train.labels, train.catalog.patients, train.classes, seed=seed
    )
    if audit is None:
        return None
    log.info("  %s%s", "warning: " if audit.is_warning else "", audit.summary())
    figure = figures.shortcut_audit(
        audit.by_statistic,
        audit.labels,
        audit.probabilities,
        audit.classes,
        train.images,
        heading=audit.summary(),
    )
    run.write_figure("shortcuts", figure, writer)
    return audit


def pooled_framings(
    train: ImageDataset,
    shortcuts: metrics.ShortcutModel | None,
    audit: metrics.ShortcutAudit | None,
) -> np.ndarray | None:
    """Return the framings that training images exchange, float64 [N, 3]; None without a shortcut.

    See `batches.training_batches`.
    """
    if shortcuts is None or audit is None or not audit.is_warning:
        return None
    log.info("  each image takes the framing of another, so that it does not predict the class")
    # Rounded, so that the last digits of the alignment do not change a resumed run.
    return np.round(align(train.images, shortcuts.chest), 3)
