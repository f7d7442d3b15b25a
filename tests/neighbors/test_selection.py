"""Votes, preprocessing and the choice of a representation."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from random_embeddings import stored_embeddings


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_vote_matches_scikit_learn(weights: str) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    from cxr_tf.neighbors.selection import vote

    rng = np.random.default_rng(1)
    index, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    # The last query is a point of the index: at no distance, it alone has the vote.
    queries = np.concatenate([rng.normal(size=(8, 3)), index[:1]])
    longest = KNeighborsClassifier(9, algorithm="kd_tree").fit(index, labels)
    distances, rows = longest.kneighbors(queries)
    for k in (1, 4, 9):
        knn = KNeighborsClassifier(k, weights=weights, algorithm="kd_tree").fit(index, labels)
        shares = vote(distances[:, :k], labels[rows[:, :k]], weights, 3)
        np.testing.assert_allclose(shares, knn.predict_proba(queries), atol=1e-12)


def test_cosine_ranking_matches_scikit_learn(tmp_path: Path) -> None:
    from sklearn.neighbors import NearestNeighbors

    from cxr_tf.neighbors.selection import fit_steps

    embeddings = stored_embeddings(tmp_path, 200, 12)
    raw = embeddings.read()
    _, values = fit_steps("as is", "cosine", embeddings)
    near = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(values[:100])
    cosine = NearestNeighbors(n_neighbors=7, algorithm="brute", metric="cosine").fit(raw[:100])
    distances, rows = near.kneighbors(values[150:])
    expected, expected_rows = cosine.kneighbors(raw[150:])
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances**2 / 2, expected, atol=1e-5)


@pytest.mark.parametrize("representation", ["as is", "standardised", "PCA"])
def test_fit_steps_keeps_one_copy_of_the_embeddings(representation: str, tmp_path: Path) -> None:
    from sklearn.pipeline import Pipeline

    from cxr_tf.neighbors.selection import fit_steps

    embeddings = stored_embeddings(tmp_path, 20_000, 128)
    size = 20_000 * 128 * 4
    tracemalloc.start()
    steps, values = fit_steps(representation, "euclidean", embeddings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # PCA's coordinates, half as wide as the embeddings here, and a float64 part of 4096 rows.
    allowed = {"as is": 1.1, "standardised": 2.0, "PCA": 2.0}[representation]
    assert peak < allowed * size
    if steps:
        again = Pipeline(steps).transform(embeddings.read()[:50])
        np.testing.assert_allclose(again, values[:50], rtol=1e-3, atol=1e-4)


def test_large_index_is_searched_in_pca_coordinates_only() -> None:
    from cxr_tf.neighbors.selection import REPRESENTATIONS, representations

    assert representations(5_000, 2048) == REPRESENTATIONS
    assert representations(100_000, 2048) == ("PCA",)
