"""Benchmarks on embeddings: selection of nearest neighbours, and t-SNE."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.config import Benchmark
from benchmarks.material import catalog_of, embeddings
from benchmarks.measurement import Results, Row, in_turn
from cxr_tf.neighbors import projection, selection
from cxr_tf.neighbors.embeddings import Embeddings

# Difference in trustworthiness of scikit-learn's t-SNE between random and PCA initialisation: root
# mean square over 8 sets of 1,000 embeddings like those below. On the same sets, this package was
# 0.004 (standard error 0.002) below scikit-learn, with approximate and with exact neighbours.
TRUST_NOISE = 0.006


def random_embeddings(points: int, width: int, seed: int, place: Path) -> Embeddings:
    """Generate random embeddings to search in, and a tenth as many (at least 20) for validation."""
    held_out = max(20, points // 10)
    values, labels = embeddings(points + held_out, width, seed)
    noise = np.random.default_rng(seed).normal(0, 0.3, (held_out, width))
    file = place / "embeddings.npz"
    with file.open("wb") as opened:
        np.savez(opened, embeddings=values)
    return Embeddings(
        file=file,
        catalog=catalog_of(["train"] * points + ["val"] * held_out),
        labels=labels,
        indexed=points,
        stressed=values[points:] + noise.astype(np.float32),
        probabilities=np.empty((0, 2), np.float32),
    )


def knn(
    settings: Benchmark, place: Path, neighbours: Sequence[int] = selection.NEIGHBOURS
) -> Results:
    """Benchmark the selection of k, metric, weights and representation of nearest neighbours.

    neighbours: the values of k to choose from.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    data = random_embeddings(settings.points, settings.width, settings.seed, place)
    values, labels, stressed = data.read(), data.labels, data.stressed
    train, val = np.arange(settings.points), np.arange(settings.points, len(values))
    # Two validation folds: the validation embeddings, and those of their perturbed copies.
    x = np.concatenate([values, stressed])
    y = np.concatenate([labels, labels[val]])
    folds = [(train, val), (train, np.arange(len(values), len(x)))]
    width = min(selection.PCA_WIDTH, settings.points, settings.width)
    steps: dict[str, Any] = {
        "as is": ["passthrough", "passthrough"],
        "standardised": [StandardScaler(), "passthrough"],
        "PCA": [StandardScaler(), PCA(width, svd_solver="covariance_eigh")],
    }
    units = {"euclidean": "passthrough", "cosine": Normalizer()}
    shown = selection.representations(settings.points, settings.width)
    grid = [
        {
            "scale": [steps[name][0]],
            "project": [steps[name][1]],
            "unit": list(units.values()),
            "knn__weights": list(selection.WEIGHTS),
            "knn__n_neighbors": list(neighbours),
        }
        for name in shown
    ]
    results_of: dict[str, Any] = {}

    def ours() -> None:
        results_of["ours"] = selection.search(data, neighbours=neighbours)

    def theirs() -> None:
        # With a cache, a PCA is not fitted again for every number of neighbours.
        with tempfile.TemporaryDirectory(dir=place) as cache:
            steps = [(name, "passthrough") for name in ("scale", "project", "unit")]
            pipe = Pipeline([*steps, ("knn", KNeighborsClassifier())], memory=cache)
            search = GridSearchCV(pipe, grid, scoring="balanced_accuracy", cv=folds, refit=False)
            results_of["theirs"] = search.fit(x, y).cv_results_

    # No warm-up: nothing is compiled here, and the alternative takes a minute.
    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 3, warm_up=False)

    def cell(row: dict[str, Any]) -> tuple[str, str, str, int]:
        by_steps = {(str(a), str(b)): name for name, (a, b) in steps.items()}
        return (
            by_steps[str(row["scale"]), str(row["project"])],
            "euclidean" if row["unit"] == "passthrough" else "cosine",
            row["knn__weights"],
            row["knn__n_neighbors"],
        )

    results = zip(
        results_of["theirs"]["params"], results_of["theirs"]["mean_test_score"], strict=True
    )
    scores = {cell(row): score for row, score in results}
    differences = [
        abs(scores[c.representation, c.metric, c.weights, c.k] - c.score)
        for c in results_of["ours"]
    ]
    equal = float(np.mean(np.array(differences) < 1e-6))
    yield Row(
        job=f"KNN, selection among {len(scores)} settings, {settings.points:,} x {settings.width}",
        alternative="scikit-learn GridSearchCV, same grid and folds, cached steps",
        at_least=5,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="s",
        count=1,
        # Rounding of a distance may change one neighbour, and so one prediction.
        same=len(differences) == len(scores) and max(differences) <= 1.01 / len(val),
        check=f"scores equal in {equal:.0%} of the grid, the others within {max(differences):.1g}",
    )


def tsne(settings: Benchmark, place: Path, trust_noise: float = TRUST_NOISE) -> Results:
    """Benchmark t-SNE including PCA.

    trust_noise: by how much the trustworthiness of this package may be below scikit-learn's.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from sklearn.preprocessing import StandardScaler

    values, _ = embeddings(settings.points, settings.width, settings.seed)
    planes: dict[str, np.ndarray] = {}

    def ours(points: np.ndarray = values) -> None:
        planes["ours"] = projection.project(points, seed=settings.seed).plane

    def theirs(points: np.ndarray = values) -> None:
        scaled = StandardScaler().fit_transform(points)
        coordinates = PCA(min(50, *points.shape)).fit_transform(scaled)
        planes["theirs"] = TSNE(random_state=settings.seed).fit_transform(coordinates)

    for way in (ours, theirs):
        way(values[:200])
    timings = in_turn({"ours": ours, "theirs": theirs}, settings.repeats or 3, warm_up=False)
    coordinates = PCA(min(50, *values.shape)).fit_transform(StandardScaler().fit_transform(values))
    trust = {n: trustworthiness(coordinates, p, n_neighbors=10) for n, p in planes.items()}
    yield Row(
        job=f"t-SNE of {settings.points:,} x {settings.width}",
        alternative="scikit-learn TSNE",
        at_least=1.5,
        ours=timings["ours"],
        theirs=timings["theirs"],
        unit="s",
        count=1,
        same=trust["ours"] >= trust["theirs"] - trust_noise,
        check=f"trustworthiness {trust['ours']:.3f} and {trust['theirs']:.3f}",
    )
