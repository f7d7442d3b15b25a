"""What was measured, in words: a line of the log for each row, and the table at the end."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measurement import Bound, Cost, Memory, Row, Skipped, Timing


def line(found: Row | Memory | Cost | Bound | Skipped) -> str:
    """One row in a line of the log."""
    if isinstance(found, Row):
        lowest, highest = min(found.ratios), max(found.ratios)
        return (
            f"{found.job}: {found.ratio:.2f} times as fast as {found.alternative} "
            f"({lowest:.2f} to {highest:.2f}; asked for {found.at_least:g}); {found.check}"
        )
    if isinstance(found, Memory):
        return f"{found.job}: {found.way}: {number(found.value)} {found.unit}{_limit(found)}"
    if isinstance(found, Cost):
        pairs = zip(found.seconds, found.sizes, strict=True)
        spent = ", ".join(f"{s:.3g} s for {n:,}" for s, n in pairs)
        return f"{found.job}: {spent} {found.what}; slope {found.slope:.2f}"
    if isinstance(found, Bound):
        return f"{found.job}: {found.of}: {number(found.value)} {found.unit}"
    return f"left out: {found.alternative}: {found.reason}"


def table(found: Sequence[Row | Memory | Cost | Bound | Skipped], about: dict[str, Any]) -> str:
    """Markdown: what it ran on, a table for each kind of row there is, and what was left out."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['gpus'] or 'no'} GPU; TensorFlow {about['packages']['tensorflow']}, "
        f"Python {about['python']}"
    ]
    if rows := [x for x in found if isinstance(x, Row)]:
        lines += _speed(rows)
    if memory := [x for x in found if isinstance(x, Memory)]:
        lines += _memory(memory)
    for sizes in dict.fromkeys(tuple(x.sizes) for x in found if isinstance(x, Cost)):
        lines += _costs([x for x in found if isinstance(x, Cost)], sizes)
    if bounds := [x for x in found if isinstance(x, Bound)]:
        lines += ["", "| what bounds the ratios | of | is |", "| --- | --- | --- |"]
        lines += [f"| {x.job} | {x.of} | {number(x.value)} {x.unit} |" for x in bounds]
    lines += [
        f"\nleft out: {x.job}, {x.alternative}: {x.reason}" for x in found if isinstance(x, Skipped)
    ]
    return "\n".join(lines)


def amount(row: Row, timing: Timing) -> str:
    """The median of the rounds in the row's unit: seconds of one, or how many in a time."""
    seconds = float(np.median(timing.seconds))
    value = {
        "s": seconds / row.count,
        "ms": 1000 * seconds / row.count,
        "images/s": row.count / seconds,
        "maps/min": row.count / seconds,
    }[row.unit]
    return f"{number(value)} {row.unit}"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _speed(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "| job | alternative | ours | theirs | times as fast (lowest to highest) | asked for "
        "| same result | MB more while it runs: ours, theirs |",
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
    lines = ["", "| memory | of | takes | asked for |", "| --- | --- | --- | --- |"]
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
