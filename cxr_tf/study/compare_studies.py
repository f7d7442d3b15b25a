"""Compare two finished studies, metric by metric.

python scripts/run_study.py --compare mine other
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_tf import console
from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError
from cxr_tf.metrics.intervals import with_interval
from cxr_tf.runs import Run, open_finished_run

log = logging.getLogger(__name__)


def compare_studies(settings: RunStudy) -> str:
    """Print the changes between two finished studies, metric by metric; return the text.

    Raises UserError if one is missing or not finished.
    """
    if len(settings.compare) != 2:
        raise UserError("give two studies, by name or folder: --compare A B")
    first, second = (open_study(settings.logs, name) for name in settings.compare)
    names = first.directory.name, second.directory.name
    lines = [f"{names[0]} -> {names[1]}"]
    configs = first.config, second.config
    same = configs[0]["data_fingerprint"] == configs[1]["data_fingerprint"]
    lines.append(
        "the same images, patients and splits"
        if same
        else "DIFFERENT data or splits: the changes below need not be due to the models"
    )
    before, after = (c["settings"] for c in configs)
    for key in sorted({*before, *after} - {"name", "logs", "saved_models", "compare"}):
        if before.get(key) != after.get(key):
            flag = "--" + key.replace("_", "-")
            lines.append(f"{flag}: {before.get(key)} -> {after.get(key)}")
    separate = compared = 0
    tables = [tables_on_test(study) for study in (first, second)]
    for step in dict.fromkeys([*tables[0], *tables[1]]):
        title = (tables[1].get(step) or tables[0][step])[0]
        if not all(step in t for t in tables):
            lines.append(f"\n{title}: only in {names[0] if step in tables[0] else names[1]}")
            continue
        (_, run_a, a), (_, run_b, b) = (t[step] for t in tables)
        lines.append(f"\n{title}, on the test set ({run_a} -> {run_b})")
        rows = []
        for metric in [m for m in a["ci95"] if "/" not in m and _known(a, m) and _known(b, m)]:
            disjoint = not intervals_overlap(a["ci95"][metric], b["ci95"][metric])
            separate, compared = separate + disjoint, compared + 1
            change = b[metric] - a[metric]
            values = [with_interval(scores, metric, counts=True) for scores in (a, b)]
            rows.append([metric, *values, f"{change:+.3f}{'  *' if disjoint else ''}"])
        lines.append(console.table(["", *names, "change"], rows, indent=2))
    lines.append(
        f"\n* the 95 % confidence intervals do not overlap: {separate} of {compared}. This is not "
        "a statistical test: overlapping intervals do not show that two values are equal, and "
        "among many comparisons some intervals are disjoint by chance."
    )
    text = "\n".join(lines)
    log.info("%s", text)
    return text


def open_study(logs: str, name: str) -> Run:
    """Return a finished study, given its name or folder; raise UserError if there is none."""
    folder = Path(name) if (Path(name) / "study.json").exists() else Path(logs) / "study" / name
    if not (folder / "study.json").exists():
        names = sorted(p.parent.name for p in (Path(logs) / "study").glob("*/study.json"))
        known = f"; known: {', '.join(names)}" if names else ""
        raise UserError(f"no study {name} under {Path(logs) / 'study'}{known}")
    return open_finished_run(folder, "study")


def tables_on_test(study: Run) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return {step: (title, name of the run, scores)} of the steps with scores on the test set."""
    logs = study.directory.parent.parent
    tables = {}
    for step in study.metrics["steps"]:
        if "run" not in step:
            continue
        metrics = Run(logs / step["run"]).metrics
        if "ci95" in metrics.get("test", {}):
            name = metrics.get("chosen", Path(step["run"]).name)
            title = step["title"]
            if "chosen" in metrics:
                title = f"selected on the validation set: {title.partition(': ')[2]}"
            tables[step["name"]] = (title, name, metrics["test"])
    return tables


def intervals_overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two closed intervals (low, high) overlap."""
    return first[0] <= second[1] and second[0] <= first[1]


def _known(table: dict[str, Any], metric: str) -> bool:
    low, high = table["ci95"].get(metric, (None, None))
    return None not in (table.get(metric), low, high)
