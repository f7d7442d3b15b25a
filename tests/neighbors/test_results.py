"""Tests of the novelty that a KNN run reports."""

from pathlib import Path

import numpy as np
from random_embeddings import stored_embeddings


def test_novelty_exceeds_one_for_data_unlike_training(tmp_path: Path) -> None:
    from cxr_tf.neighbors.fit_knn import NOVELTY_QUANTILE
    from cxr_tf.neighbors.results import novelty_of
    from cxr_tf.neighbors.selection import Candidate, before_knn, fit_pipeline

    embeddings = stored_embeddings(tmp_path, 800, 12)
    knn = fit_pipeline(embeddings, Candidate("standardised", "euclidean", "uniform", 5, 0, 0, 0))
    values = embeddings.read()

    def distances(rows: np.ndarray) -> np.ndarray:
        return knn[-1].kneighbors(before_knn(knn, rows))[0]

    val = distances(values[embeddings.rows("val")])
    limit = float(np.quantile(val[:, -1], NOVELTY_QUANTILE))
    assert 0 < np.mean(novelty_of(val, limit) > 1) <= 0.015
    assert (novelty_of(distances(values[:50] + 2), limit) > 1).all()
