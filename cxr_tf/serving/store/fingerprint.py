"""Identify an exported model by its content."""

from pathlib import Path

from cxr_tf.files import digest_files


def fingerprint(folder: Path) -> str:
    """Return a digest of a SavedModel's graph and weights."""
    return digest_files(*sorted([folder / "saved_model.pb", *(folder / "variables").iterdir()]))
