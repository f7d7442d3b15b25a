"""A finished KNN run."""

from pathlib import Path

import pytest
from fitted_knn import Fitted, fit


@pytest.fixture(scope="session")
def fitted(phantoms: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(phantoms, tiny_backbone, tmp_path_factory.mktemp("knn"))
