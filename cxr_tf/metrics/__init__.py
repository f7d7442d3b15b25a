"""Scores, intervals, calibration, operating points and paired tests."""

from cxr_tf.metrics.calibration import (
    CALIBRATION_BINS,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from cxr_tf.metrics.classification import classification_scores, macro_auroc
from cxr_tf.metrics.detection import detection_scores
from cxr_tf.metrics.intervals import (
    bootstrap_weights,
    confidence_intervals,
    intervals,
    with_interval,
)
from cxr_tf.metrics.localization import (
    hottest_pixel,
    per_region_overlap,
    pixel_auroc,
    pointing_hits,
)
from cxr_tf.metrics.operating_point import check_rule, operating_point
from cxr_tf.metrics.paired_tests import delong_test, mcnemar_test
from cxr_tf.metrics.ranking import average_precision, cumulative_counts, roc_area
from cxr_tf.metrics.shortcuts import (
    ShortcutAudit,
    ShortcutModel,
    against_shortcut,
    audit_shortcuts,
    fit_shortcuts,
    group_weights,
    recall_against_shortcut,
)

__all__ = [
    "CALIBRATION_BINS",
    "ShortcutAudit",
    "ShortcutModel",
    "against_shortcut",
    "audit_shortcuts",
    "average_precision",
    "bootstrap_weights",
    "check_rule",
    "classification_scores",
    "confidence_intervals",
    "cumulative_counts",
    "delong_test",
    "detection_scores",
    "expected_calibration_error",
    "fit_shortcuts",
    "fit_temperature",
    "group_weights",
    "hottest_pixel",
    "intervals",
    "macro_auroc",
    "mcnemar_test",
    "operating_point",
    "per_region_overlap",
    "pixel_auroc",
    "pointing_hits",
    "recall_against_shortcut",
    "reliability",
    "roc_area",
    "with_interval",
]
