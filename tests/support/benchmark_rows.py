"""Rows of a benchmark, as a job yields them."""

from benchmarks.measurement import Row, Timing


def row(ours: list[float], theirs: list[float], **changed) -> Row:
    fields = {
        "job": "maps", "alternative": "other", "at_least": 3.0, "ours": Timing(ours, 1.0),
        "theirs": Timing(theirs, 2.0), "unit": "images/s", "count": 10, "same": True,
        "check": "equal",
    }  # fmt: skip
    return Row(**{**fields, **changed})
