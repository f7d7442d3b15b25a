"""What changed between two finished studies, metric by metric.

python scripts/run_study.py --compare mine other
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError
from cxr_tf.metrics.intervals import with_interval
from cxr_tf.runs import Run

log = logging.getLogger(__name__)


def compare_studies(settings: RunStudy) -> str:
    """Prints, metric by metric, what changed between two finished studies; returns the text.

    Raises UserError where one is missing or not finished.
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
        else "DIFFERENT data, or other splits of them: what changed need not be the models"
    )
    before, after = (c["settings"] for c in configs)
    for key in sorted({*before, *after} - {"name", "logs", "saved_models", "compare"}):
        if before.get(key) != after.get(key):
            flag = "--" + key.replace("_", "-")
            lines.append(f"{flag}: {before.get(key)} -> {after.get(key)}")
    apart = compared = 0
    tables = [tables_on_test(study) for study in (first, second)]
    for title in dict.fromkeys([*tables[0], *tables[1]]):
        if not all(title in t for t in tables):
            lines.append(f"\n{title}: only in {names[0] if title in tables[0] else names[1]}")
            continue
        (run_a, a), (run_b, b) = (t[title] for t in tables)
        lines.append(f"\n{title}, on test ({run_a} -> {run_b})")
        for metric in [m for m in a["ci95"] if "/" not in m and _known(a, m) and _known(b, m)]:
            parted = not intervals_overlap(a["ci95"][metric], b["ci95"][metric])
            apart, compared = apart + parted, compared + 1
            change = b[metric] - a[metric]
            lines.append(
                f"  {metric:<18}{with_interval(a, metric):<26}{with_interval(b, metric):<26}"
                f"{change:+.3f}{'  *' if parted else ''}"
            )
    lines.append(
        f"\n* the 95 % intervals do not overlap: {apart} of {compared}. This is no test: intervals "
        "that overlap do not say that two values are equal, and of many comparisons some stand "
        "apart by chance."
    )
    text = "\n".join(lines)
    log.info("%s", text)
    return text


def open_study(logs: str, name: str) -> Run:
    """A finished study, by its name or its folder; UserError where there is none."""
    run = Run(Path(name) if (Path(name) / "study.json").exists() else Path(logs) / "study" / name)
    if not (run.directory / "study.json").exists():
        found = sorted(p.parent.name for p in (Path(logs) / "study").glob("*/study.json"))
        known = f"; there are {', '.join(found)}" if found else ""
        raise UserError(f"no study {name} under {Path(logs) / 'study'}{known}")
    if not run.finished:
        raise UserError(
            f"the study {name} is not finished: go on with it by {run.config['command']}"
        )
    return run


def tables_on_test(study: Run) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each step with scores on test, its title: (name of its run, the table)."""
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
                title = f"chosen on validation: {title.partition(': ')[2]}"
            tables[title] = (name, metrics["test"])
    return tables


def intervals_overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two closed intervals (low, high) have a value in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def _known(table: dict[str, Any], metric: str) -> bool:
    low, high = table["ci95"].get(metric, (None, None))
    return None not in (table.get(metric), low, high)
