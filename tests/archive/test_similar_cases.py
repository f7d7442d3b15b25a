"""Tests of similar cases: exact search in small archives, faiss in large ones."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

from archive_workers import RECIPE

from cxr_tf.archive import similar_cases
from cxr_tf.archive.plan import Plan, Recipe, shard_name
from cxr_tf.archive.shards import columns_of, encode
from cxr_tf.archive.similar_cases import exact, fit_knn, open_index, search, unit_length
from cxr_tf.archive.sources import Image
from cxr_tf.archive.storage import open_storage
from cxr_tf.config import FitKnn
from cxr_tf.errors import UserError

COUNT, WIDTH = 4000, 16


@pytest.fixture(scope="module")
def embedded() -> np.ndarray:
    """Clustered vectors, which resemble embeddings."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, WIDTH))
    return (centres[rng.integers(0, 40, COUNT)] + rng.normal(0, 0.2, (COUNT, WIDTH))).astype("f4")


@pytest.fixture(scope="module")
def archive(embedded: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """An archive in which every tenth image could not be read."""
    storage = open_storage(str(tmp_path_factory.mktemp("archive")))
    recipe = Recipe("nowhere", "digest", {"embed": "tensorflow"}, "float32", 512, 32)
    plan = Plan.create(storage, recipe)
    readable = iter(embedded)
    images = [Image(f"{k}.png") for k in range(-(-COUNT * 10 // 9))]
    plan, _ = plan.extended(images)
    columns = columns_of([{"embedding": embedded[:1]}])
    for shard in range(plan.shards):
        paths = [i.path for i in plan.images_of(shard)]
        rows = [k for k in range(len(paths)) if (512 * shard + k) % 10]
        values = np.array([next(readable) for _ in rows])
        reasons = dict.fromkeys(set(range(len(paths))) - set(rows), "empty")
        content = encode(columns, paths, rows, {"embedding": values}, reasons, "digest")
        storage.create(shard_name(shard), content)
    return plan


def nearest(embedded: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(embedded)
    return search.kneighbors(queries, return_distance=False)


def test_exact_search_matches_scikit_learn(archive: Plan, embedded: np.ndarray) -> None:
    queries = embedded[::400] + 0.01
    found = exact(archive, unit_length(queries), 5)
    np.testing.assert_array_equal(found.rows, nearest(embedded, queries, 5))
    assert (np.diff(found.distances, axis=1) >= 0).all()


def test_a_large_archive_is_indexed_once_and_its_recall_measured(
    archive: Plan, embedded: np.ndarray
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    report = fit_knn(FitKnn(archive=archive.storage.url, neighbors=10), approximate_from=1000)
    assert report["search"] == "faiss" and report["embeddings"] == COUNT
    queries = embedded[::40]
    written = Path(archive.storage.url, similar_cases.INDEX).stat()
    index = open_index(archive, COUNT)
    assert Path(archive.storage.url, similar_cases.INDEX).stat().st_mtime_ns == written.st_mtime_ns
    rows = search(archive, index, unit_length(queries), 10).rows
    right = nearest(embedded, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, right, strict=True)])
    assert report["recall"] >= 0.95 and recall == pytest.approx(report["recall"], abs=0.03)


def test_unsearchable_archives_are_refused(archive: Plan, tmp_path: Path) -> None:
    Plan.create(open_storage(str(tmp_path / "none")), RECIPE).extended([Image("a.png")])
    for settings, message in (
        (FitKnn(archive=str(tmp_path)), "not an archive"),
        (FitKnn(archive=str(tmp_path / "none")), "1 of 1 shards"),
        (FitKnn(archive=archive.storage.url, neighbors=0), "--neighbors must be at least 1"),
        (FitKnn(archive=archive.storage.url, output=str(tmp_path)), "exists"),
    ):
        with pytest.raises(UserError, match=message):
            fit_knn(settings)
