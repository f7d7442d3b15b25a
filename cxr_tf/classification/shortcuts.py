"""The shortcut audit of the training images."""

import logging

import tensorflow as tf

from cxr_tf import figures, metrics
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run

log = logging.getLogger(__name__)


def audit_training_images(
    run: Run, train: ImageDataset, writer: tf.summary.SummaryWriter, *, seed: int
) -> metrics.ShortcutAudit | None:
    """Log, draw and return the shortcut audit of the training images.

    Returns None if a class has too few patients for the audit.
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
