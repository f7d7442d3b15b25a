"""Fixtures of the tests of data sets."""

from pathlib import Path

import numpy as np
import pytest
from catalogs import Write
from PIL import Image


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write images below the test's folder; images with the same `like` have equal content."""
    count = iter(range(1, 10**6))

    def image(name: str, like: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = like or next(count) + 10**6
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
        return path

    return image
