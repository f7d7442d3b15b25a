"""Paths as users give them."""

from pathlib import Path


def expanded(path: str) -> Path:
    """The path with `~` and `~name` in full; as it is where there is nobody of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a folder may be called so
        return Path(path)
