"""Print the status and summary of an archive, and merge its shards into one file.

    summarize(plan)                            # printed, and summary.json
    merge(plan, "scores.parquet")

All functions read the shards one by one, so that memory does not grow with their number.
"""

import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.archive.plan import SHARDS, Plan, shard_name
from cxr_tf.archive.shards import open_shard, outputs_of
from cxr_tf.console import time_span
from cxr_tf.errors import UserError
from cxr_tf.evaluation.prediction_output import blank, cells, image_predictions
from cxr_tf.files import expand_user, to_json_types, write_atomically

log = logging.getLogger(__name__)

SUMMARY = "summary.json"

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# Quantiles are estimated from a histogram, with an error of at most a thousandth of the range.
BINS = 1000

# The speed is measured over the shards written in this many seconds before the last one.
RECENT = 600


def print_status(plan: Plan) -> None:
    """Print the progress and speed of an archive, read from its files."""
    finished = plan.finished()
    images = sum(map(plan.size_of, finished))
    recipe = plan.recipe
    signatures = ", ".join(f"{name} on {engine}" for name, engine in recipe.signatures.items())
    log.info("model:   %s (%s), %s", recipe.model, recipe.digest[:8], signatures)
    log.info("shards:  %d of %d", len(finished), plan.shards)
    share = images / max(plan.images, 1)
    log.info("images:  %d of %d, %.1f %%", images, plan.images, 100 * share)
    written = plan.storage.modified(SHARDS)
    times = {s: written[n] for s in finished if (n := Path(shard_name(s)).name) in written}
    if not times:
        return
    last = max(times.values())
    log.info("written: latest shard %s ago", time_span(max(time.time() - last, 0)))
    recent = sorted((t, s) for s, t in times.items() if t > last - RECENT)
    seconds = recent[-1][0] - recent[0][0]
    if len(finished) < plan.shards and seconds > 0:
        # The first shard is left out, because it was started before this period.
        rate = sum(plan.size_of(s) for _, s in recent[1:]) / seconds
        left = (plan.images - images) / rate
        log.info("speed:   %.1f images/s, %s left", rate, time_span(left))


# ---------------------------------------------------------------------- summary


def summarize(plan: Plan) -> dict[str, Any]:
    """Summarise a finished archive; print the summary and write it as `summary.json`."""
    columns, flags = _columns(plan)
    ranges = dict.fromkeys(columns, (np.inf, -np.inf))
    for file in _shards(plan):
        for name, (low, high) in _ranges(file, columns).items():
            ranges[name] = (min(ranges[name][0], low), max(ranges[name][1], high))
    reasons: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    counts = {name: np.zeros(BINS, np.int64) for name in columns}
    for file in _shards(plan):
        names = [n for n in ("reason", "label", *columns, *flags) if n in file.schema_arrow.names]
        table = file.read(columns=names)
        reasons.update(_kind(r) for r in table["reason"].to_pylist() if r is not None)
        if "label" in names:
            labels.update(v for v in table["label"].to_pylist() if v is not None)
        for name in flags:
            flagged[name] += sum(v is True for v in table[name].to_pylist())
        for name in columns:
            values = table[name].drop_null().to_numpy()
            counts[name] += np.histogram(values, BINS, _edges(ranges[name]))[0]
    summary = {
        "images": plan.images,
        "shards": plan.shards,
        "unreadable": sum(reasons.values()),
        "reasons": dict(reasons.most_common()),
        "labels": dict(sorted(labels.items())),
        "flags": dict(flagged),
        "scores": {n: _distribution(counts[n], ranges[n]) for n in columns if counts[n].any()},
    }
    content = json.dumps(to_json_types(summary), indent=2, allow_nan=False) + "\n"
    plan.storage.replace(SUMMARY, content.encode())
    _print_summary(plan, summary)
    return summary


def _print_summary(plan: Plan, summary: dict[str, Any]) -> None:
    log.info("%d images in %d shards: %s", plan.images, plan.shards, plan.storage.url)
    log.info("  unreadable: %d", summary["unreadable"])
    for reason, count in list(summary["reasons"].items())[:10]:
        log.info("    %d  %s", count, reason)
    for label, count in [*summary["labels"].items(), *summary["flags"].items()]:
        log.info("  %s: %d (%.1f %%)", label, count, 100 * count / max(plan.images, 1))
    for name, values in summary["scores"].items():
        quantiles = "  ".join(f"{q} {values[q]:.3g}" for q in values if q.endswith("%"))
        log.info("  distribution of %s: %s", name, quantiles)


def _kind(reason: str) -> str:
    """Return a reason without details of the file, so that equal reasons can be counted."""
    return "unreachable" if reason.startswith("unreachable: ") else reason


def _columns(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the names of the floating-point columns and of the boolean columns."""
    import pyarrow.types as kinds

    schema = next(_shards(plan)).schema_arrow
    numbers = [f.name for f in schema if kinds.is_floating(f.type)]
    return numbers, [f.name for f in schema if kinds.is_boolean(f.type)]


def _ranges(file: Any, columns: list[str]) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each column, from the footer of the file."""
    group = file.metadata.row_group(0)
    ranges = {}
    for k in range(group.num_columns):
        column = group.column(k)
        statistics = column.statistics
        if column.path_in_schema in columns and statistics is not None and statistics.has_min_max:
            ranges[column.path_in_schema] = (statistics.min, statistics.max)
    return ranges


def _edges(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if np.isfinite(low) and np.isfinite(high) else (0.0, 1.0)


def _distribution(counts: np.ndarray, span: tuple[float, float]) -> dict[str, float]:
    low, high = span
    edges = np.linspace(low, high, BINS + 1)
    below = np.cumsum(counts) / counts.sum()
    middles = (edges[:-1] + edges[1:]) / 2
    quantiles = {f"{100 * q:g} %": float(middles[np.searchsorted(below, q)]) for q in QUANTILES}
    return {"min": float(low), **quantiles, "max": float(high)}


def unreachable_shards(plan: Plan) -> list[int]:
    """Return the shards in which a file could not be reached."""
    shards = []
    for shard in sorted(plan.finished()):
        reasons = _open(plan, shard).read(columns=["reason"])["reason"].drop_null().to_pylist()
        if any(_kind(reason) == "unreachable" for reason in reasons):
            shards.append(shard)
    return shards


# ---------------------------------------------------------------------- one file


def merge(plan: Plan, output: str) -> None:
    """Write all shards into one .parquet or .csv file, atomically.

    A .csv file has the columns of `predict.py`, with each embedding as JSON in one cell. Raises
    UserError if the archive is not finished, or the file exists.
    """
    path = expand_user(output)
    writers = {".parquet": _merge_parquet, ".csv": _merge_csv}
    if path.suffix not in writers:
        raise UserError(f"--merge {output}: give a name that ends in .parquet or .csv")
    if path.exists():
        raise UserError(f"{output} exists: choose another --merge, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"no such folder: {path.parent}")
    if missing := plan.missing():
        raise UserError(
            f"{len(missing)} of {plan.shards} shards are missing, the first is "
            f"{shard_name(missing[0])}: first run the command without --merge"
        )
    write_atomically(path, lambda beside: writers[path.suffix](plan, beside))
    log.info("%d images: %s", plan.images, output)


def _merge_parquet(plan: Plan, path: Path) -> None:
    import pyarrow.parquet as pq

    schema = next(_shards(plan)).schema_arrow
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for file in _shards(plan):
            writer.write_table(file.read())


def _merge_csv(plan: Plan, path: Path) -> None:
    template = next((p for _, p, _ in _predictions(plan) if p), None)
    if template is None:
        raise UserError(
            "--merge: no image could be read, so the prediction columns of a .csv are unknown: "
            "choose a .parquet file"
        )
    unread = cells(blank(template))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *unread, "reason"])
        for name, predicted, reason in _predictions(plan):
            row = cells(predicted) if predicted else unread
            writer.writerow([name, *row.values(), reason])


def _predictions(plan: Plan) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """Yield (path, predictions in the form of `predict.py` or None, reason) of each image."""
    for file in _shards(plan):
        table = file.read()
        outputs = outputs_of(table)
        row = 0
        for name, reason in zip(
            table["path"].to_pylist(), table["reason"].to_pylist(), strict=True
        ):
            if reason is None:
                yield name, image_predictions(outputs, row), ""
                row += 1
            else:
                yield name, None, reason


def _shards(plan: Plan) -> Iterator[Any]:
    for shard in range(plan.shards):
        yield _open(plan, shard)


def _open(plan: Plan, shard: int) -> Any:
    import pyarrow as pa

    try:
        return open_shard(plan.storage.open(shard_name(shard)))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{plan.storage.path(shard_name(shard))} is damaged ({error}): remove it and run again"
        ) from None
