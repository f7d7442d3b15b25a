"""Helpers for tests that build catalogues."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_tf.data.catalog import Catalog
from cxr_tf.errors import UserError

Write = Callable[..., Path]


def count_rows(catalog: Catalog) -> dict[tuple[str, str], int]:
    """Return the number of rows by (split, finding)."""
    table: dict[tuple[str, str], int] = {}
    for r in catalog.radiographs:
        table[r.split, r.finding] = table.get((r.split, r.finding), 0) + 1
    return table


def error_of(act: Callable[[], object]) -> str:
    """Return the message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def write_list(tmp_path: Path, text: str) -> str:
    """Write a .csv list, and return its path."""
    path = tmp_path / "catalogue.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)
