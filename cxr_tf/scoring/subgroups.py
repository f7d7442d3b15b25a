"""Scores by subgroup of patients, such as age groups, sex or site; see `metrics.subgroups`."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.data.dataset import ImageDataset

log = logging.getLogger(__name__)

# The scores of each subgroup.
SUBGROUP_METRICS = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")


def score_subgroups(
    part: ImageDataset,
    score: Callable[[np.ndarray], dict[str, float]],
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of each subgroup and the gaps between subgroups; log both.

    score: a function from weights [N] to scores, at least those of `SUBGROUP_METRICS`. The keys of
    the result are `groups`, see `metrics.subgroup_scores`, and `gaps`, see `metrics.gaps`. The
    result is empty if the catalogue has no column with several groups.
    """

    def selected(weights: np.ndarray) -> dict[str, float]:
        table = score(weights)
        return {name: table[name] for name in SUBGROUP_METRICS}

    groups = metrics.subgroup_scores(
        selected,
        part.catalog.group_columns(),
        part.catalog.patients,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )
    if not groups:
        return {}
    result = {"groups": groups, "gaps": metrics.gaps(groups, SUBGROUP_METRICS)}
    for line in subgroup_lines(result):
        log.info("%s", line)
    return result


def subgroup_lines(subgroups: dict[str, Any]) -> list[str]:
    """Format the scores of subgroups, and the gaps between them, as lines of the log."""
    lines = []
    for column, groups in subgroups["groups"].items():
        for group, table in groups.items():
            values = ", ".join(
                f"{m} {metrics.with_interval(table, m)}" for m in ("auroc", "recall", "specificity")
            )
            lines.append(f"  {column} {group} ({table['patients']} patients): {values}")
    for gap in subgroups["gaps"]:
        lines.append(
            f"  note: {gap['metric']} is lower for {gap['column']} {gap['lowest']} than for "
            f"{gap['highest']}, by {gap['difference']:.3f}; the intervals do not overlap"
        )
    return lines
