"""Operating points: the threshold on the ROC curve that turns a score into a decision."""

import numpy as np
from sklearn import metrics as sk

from cxr_tf.errors import UserError


def check_rule(rule: str) -> tuple[str, float]:
    """Return the name and argument of an operating point; raise UserError for an unknown one."""
    name, _, argument = rule.partition(":")
    if rule in ("0.5", "youden"):
        return rule, 0.0
    if name not in ("min-sensitivity", "min-specificity"):
        raise UserError(
            f"unknown operating point '{rule}'; known: 0.5, youden, min-sensitivity:S and "
            "min-specificity:S, with a share S such as 0.95"
        )
    try:
        target = float(argument)
    except ValueError:
        target = -1.0
    if not 0 < target <= 1:
        raise UserError(
            f"operating point '{rule}': give a share above 0 and up to 1, as in {name}:0.95"
        )
    return name, target


def operating_point(
    labels: np.ndarray, scores: np.ndarray, rule: str, weights: np.ndarray | None = None
) -> float:
    """Return the threshold at or above which a score is positive; labels: bool or 0/1 [N].

    Rules: `0.5` is that number. `youden` is the threshold with the largest sum of sensitivity and
    specificity (Youden 1950), the highest one if there are several. `min-sensitivity:S` is the
    highest threshold whose sensitivity is at least S; `min-specificity:S` is the lowest threshold
    whose specificity is at least S. Except for `0.5`, thresholds are half-way between two scores.
    weights [N]: how much each image counts for `youden`; the other two rules guarantee a share of
    the images, and ignore the weights. Raises UserError for an unknown rule.
    """
    name, target = check_rule(rule)
    if name == "0.5":
        return 0.5
    false_alarm, sensitivity, thresholds = sk.roc_curve(
        labels, scores, drop_intermediate=False, sample_weight=weights if name == "youden" else None
    )
    # The first point is "nothing is positive", at an infinite threshold.
    false_alarm, sensitivity, thresholds = false_alarm[1:], sensitivity[1:], thresholds[1:]
    # Half-way to the next score: at a score itself, rounding errors of the model would decide.
    below_all = 0.0 if thresholds[-1] >= 0 else thresholds[-1] - 1.0
    between = (thresholds + np.append(thresholds[1:], below_all)) / 2
    # Rounded, because 1 - 0.9 is less than 0.1 in floating point.
    if name == "youden":
        return float(between[np.argmax(np.round(sensitivity - false_alarm, 9))])
    if name == "min-sensitivity":
        return float(between[np.argmax(np.round(sensitivity, 9) >= target)])
    allowed = np.flatnonzero(np.round(1 - false_alarm, 9) >= target)
    # If no threshold at a score is strict enough, take the next number above all scores, in float32
    # because the model compares in float32.
    above_all = np.nextafter(np.float32(thresholds[0]), np.float32(np.inf))
    return float(between[allowed[-1]] if len(allowed) else above_all)
