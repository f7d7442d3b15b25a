"""Tests of the benchmarks on embeddings: other results are marked as different."""

import openTSNE
from sklearn import model_selection

from benchmarks import embeddings
from benchmarks.config import Benchmark
from benchmarks.measurement import Row
from cxr_tf.neighbors import projection


def test_search_with_other_results_is_marked_as_different(tmp_path, monkeypatch) -> None:
    class Other(model_selection.GridSearchCV):
        def fit(self, *given, **how):
            super().fit(*given, **how)
            self.cv_results_["mean_test_score"] = self.cv_results_["mean_test_score"] - 0.1
            return self

    settings = Benchmark(points=200, width=16, repeats=1)
    (found,) = embeddings.knn(settings, tmp_path, neighbours=(1,))
    assert isinstance(found, Row) and found.same, found.check
    monkeypatch.setattr(model_selection, "GridSearchCV", Other)
    (found,) = embeddings.knn(settings, tmp_path, neighbours=(1,))
    assert isinstance(found, Row) and not found.same


def test_untrustworthy_map_is_marked_as_different(tmp_path, monkeypatch) -> None:
    class Shuffled(openTSNE.TSNE):
        def fit(self, points):
            return super().fit(points)[::-1]

    settings = Benchmark(points=200, width=16, repeats=1)
    noise = 0.03  # of 200 points it is larger
    (found,) = embeddings.tsne(settings, tmp_path, noise)
    assert isinstance(found, Row) and found.same, found.check
    monkeypatch.setattr(projection, "TSNE", Shuffled)
    (found,) = embeddings.tsne(settings, tmp_path, noise)
    assert isinstance(found, Row) and not found.same, found.check
