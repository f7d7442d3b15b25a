"""Scores, intervals, calibration, operating points and paired tests."""

from cxr_tf.metrics.calibration import (
    CALIBRATION_BINS,
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from cxr_tf.metrics.classification import classification_scores, macro_auroc
from cxr_tf.metrics.conformal import conformal_thresholds, risk_coverage, set_scores
from cxr_tf.metrics.detection import detection_scores
from cxr_tf.metrics.intervals import (
    bootstrap_weights,
    classification_counts,
    classification_support,
    confidence_intervals,
    detection_support,
    intervals,
    with_interval,
)
from cxr_tf.metrics.localization import (
    hottest_pixel,
    per_region_overlap,
    pixel_auroc,
    pointing_hits,
)
from cxr_tf.metrics.novelty import Gaussian, fit_gaussian, mahalanobis
from cxr_tf.metrics.operating_point import check_rule, operating_point
from cxr_tf.metrics.paired_tests import delong_test, mcnemar_test
from cxr_tf.metrics.plausibility import prediction_warnings
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
from cxr_tf.metrics.subgroups import gaps, subgroup_scores

__all__ = [
    "CALIBRATION_BINS",
    "Gaussian",
    "ShortcutAudit",
    "ShortcutModel",
    "against_shortcut",
    "audit_shortcuts",
    "average_precision",
    "bootstrap_weights",
    "check_rule",
    "classification_counts",
    "classification_scores",
    "classification_support",
    "confidence_intervals",
    "conformal_thresholds",
    "cumulative_counts",
    "delong_test",
    "detection_scores",
    "detection_support",
    "expected_calibration_error",
    "fit_calibration",
    "fit_gaussian",
    "fit_shortcuts",
    "gaps",
    "group_weights",
    "hottest_pixel",
    "intervals",
    "macro_auroc",
    "mahalanobis",
    "mcnemar_test",
    "operating_point",
    "per_region_overlap",
    "pixel_auroc",
    "pointing_hits",
    "prediction_warnings",
    "recall_against_shortcut",
    "reliability",
    "risk_coverage",
    "roc_area",
    "set_scores",
    "subgroup_scores",
    "with_interval",
]
