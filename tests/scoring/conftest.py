"""A folder of phantoms without split folders."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def unsplit(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms without split folders."""
    for path in phantoms.glob("t*/*/*.png"):
        (tmp_path / "unsplit" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "unsplit" / path.parent.name)
    return tmp_path / "unsplit"
