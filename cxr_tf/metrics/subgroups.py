"""Scores per subgroup of patients, with intervals, and gaps between subgroups.

tables = subgroup_scores(score, {"sex": ["F", "M", ...]}, patients, bootstrap_samples=1000)
tables["sex"]["F"]["auroc"], tables["sex"]["F"]["ci95"]["auroc"]
gaps(tables, ("auroc", "recall"))
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_tf.metrics.intervals import intervals

# Lower edges of the age groups in years, and their names.
AGE_GROUPS = {
    **{0: "below 1 year", 1: "1 to 4 years", 5: "5 to 17 years", 18: "18 to 39 years"},
    **{40: "40 to 64 years", 65: "65 years and older"},
}

# Name of the group of images whose value is not known.
UNKNOWN = "unknown"

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([ymwd]?)\w*", re.IGNORECASE)

_PER_YEAR = {"": 1.0, "y": 1.0, "m": 12.0, "w": 52.18, "d": 365.25}


def subgroup_scores(
    score: Callable[[np.ndarray], dict[str, float]],
    columns: Mapping[str, Sequence[str]],
    patients: Sequence[str],
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {column: {group: scores}} with counts and, under `ci95`, 95 % intervals.

    score: a function from weights [N] to scores; columns: for each column, the values of N images;
    a column `age` is divided into age groups, and a column with a single group is left out.
    Patients are resampled within each group.
    """
    names = np.asarray(patients)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for column, values in columns.items():
        groups = np.array([group_of(column, value) for value in values])
        if len(set(groups)) < 2:
            continue
        tables[column] = {}
        for group in sorted(set(groups), key=lambda g: _order(column, g)):
            rows = np.flatnonzero(groups == group)
            members = names[rows].tolist()

            def within(weights: np.ndarray, rows: np.ndarray = rows) -> dict[str, float]:
                every = np.zeros(len(names))
                every[rows] = weights
                return score(every)

            table: dict[str, Any] = dict(within(np.ones(len(rows))))
            table["images"], table["patients"] = len(rows), len(set(members))
            table["ci95"] = intervals(
                within, members, bootstrap_samples=bootstrap_samples, seed=seed
            )
            tables[column][group] = table
    return tables


def gaps(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the largest gap per column and metric between groups whose intervals do not overlap.

    Each is {column, metric, lowest, highest, difference}: the two groups and their difference. The
    result is not corrected for the number of groups and metrics.
    """
    result = []
    for column, groups in tables.items():
        for metric in metrics:
            known = {g: t["ci95"][metric] for g, t in groups.items() if metric in t["ci95"]}
            pairs = [
                (groups[high][metric] - groups[low][metric], low, high)
                for low in known
                for high in known
                if known[low][1] < known[high][0]
            ]
            if pairs:
                difference, low, high = max(pairs)
                result.append(
                    {
                        "column": column,
                        "metric": metric,
                        "lowest": low,
                        "highest": high,
                        "difference": float(difference),
                    }
                )
    return result


def group_of(column: str, value: str) -> str:
    """Return the group of a value; for an age, in years or in DICOM's format, the age group."""
    value = value.strip()
    if not value:
        return UNKNOWN
    if column != "age":
        return value
    match = _AGE.fullmatch(value)
    if not match:
        return value
    years = float(match[1]) / _PER_YEAR[match[2].lower()]
    return AGE_GROUPS[max(edge for edge in AGE_GROUPS if edge <= years)]


def _order(column: str, group: str) -> tuple[int, str]:
    names = list(AGE_GROUPS.values())
    if group == UNKNOWN:
        return len(names) + 1, group
    return (names.index(group) if column == "age" and group in names else len(names)), group
