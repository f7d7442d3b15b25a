"""Format the results: a log line for each row, and the tables at the end."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measurement import Bound, Cost, Memory, Row, Skipped, Timing


def line(result: Row | Memory | Cost | Bound | Skipped) -> str:
    """Format one row as a log line."""
    if isinstance(result, Row):
        lowest, highest = min(result.ratios), max(result.ratios)
        return (
            f"{result.job}: {result.ratio:.2f} times as fast as {result.alternative} "
            f"({lowest:.2f} to {highest:.2f}; target {result.at_least:g}); {result.check}"
        )
    if isinstance(result, Memory):
        return f"{result.job}: {result.way}: {number(result.value)} {result.unit}{_limit(result)}"
    if isinstance(result, Cost):
        pairs = zip(result.seconds, result.sizes, strict=True)
        spent = ", ".join(f"{s:.3g} s for {n:,}" for s, n in pairs)
        return f"{result.job}: {spent} {result.what}; slope {result.slope:.2f}"
    if isinstance(result, Bound):
        return f"{result.job}: {result.of}: {number(result.value)} {result.unit}"
    return f"left out: {result.alternative}: {result.reason}"


def table(results: Sequence[Row | Memory | Cost | Bound | Skipped], about: dict[str, Any]) -> str:
    """Format the machine, a table for each kind of row, and the skipped benchmarks as Markdown."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['gpus'] or 'no'} GPU; TensorFlow {about['packages']['tensorflow']}, "
        f"Python {about['python']}"
    ]
    if rows := [x for x in results if isinstance(x, Row)]:
        lines += _speed(rows)
    if memory := [x for x in results if isinstance(x, Memory)]:
        lines += _memory(memory)
    for sizes in dict.fromkeys(tuple(x.sizes) for x in results if isinstance(x, Cost)):
        lines += _costs([x for x in results if isinstance(x, Cost)], sizes)
    if bounds := [x for x in results if isinstance(x, Bound)]:
        lines += ["", "| bound | of | value |", "| --- | --- | --- |"]
        lines += [f"| {x.job} | {x.of} | {number(x.value)} {x.unit} |" for x in bounds]
    lines += [
        f"\nleft out: {x.job}, {x.alternative}: {x.reason}"
        for x in results
        if isinstance(x, Skipped)
    ]
    return "\n".join(lines)


def amount(row: Row, timing: Timing) -> str:
    """Format the median of the rounds in the unit of the row: time per item, or items per time."""
    seconds = float(np.median(timing.seconds))
    value = {
        "s": seconds / row.count,
        "ms": 1000 * seconds / row.count,
        "images/s": row.count / seconds,
        "maps/min": row.count / seconds,
    }[row.unit]
    return f"{number(value)} {row.unit}"


def number(value: float) -> str:
    """Format a number with three significant digits, or as a whole number if it is 100 or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _speed(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "| job | alternative | ours | theirs | times as fast (lowest to highest) | target "
        "| same result | memory growth during a call, MB: ours, theirs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reached = "" if row.ratio >= row.at_least else ", missed"
        same = row.check if row.same else f"NOT THE SAME: {row.check}"
        lines.append(
            f"| {row.job} | {row.alternative} | {amount(row, row.ours)} | {amount(row, row.theirs)}"
            f" | {row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
            f" | {row.at_least:g}{reached} | {same}"
            f" | {row.ours.grown_mb:,.0f}, {row.theirs.grown_mb:,.0f} |"
        )
    return lines


def _memory(rows: Sequence[Memory]) -> list[str]:
    lines = ["", "| memory of | implementation | memory | target |", "| --- | --- | --- | --- |"]
    for row in rows:
        limit = _limit(row).removeprefix(", ")
        lines.append(f"| {row.job} | {row.way} | {number(row.value)} {row.unit} | {limit} |")
    return lines


def _limit(row: Memory) -> str:
    if row.at_most is None:
        return ""
    return f", at most {number(row.at_most)}" + ("" if row.reached else ", missed")


def _costs(rows: Sequence[Cost], sizes: tuple[int, ...]) -> list[str]:
    lines = [
        "",
        "| seconds, by size | " + " | ".join(f"{n:,}" for n in sizes) + " | slope |",
        "| --- |" + " --- |" * (len(sizes) + 1),
    ]
    for row in rows:
        spent = " | ".join(f"{s:.3g}" for s in row.seconds)
        lines.append(f"| {row.job} ({row.what}) | {spent} | {row.slope:.2f} |")
    return lines
