"""Which nearest neighbours: representation, metric, weights and k, chosen on validation.

    grid = search(embeddings)
    chosen = max(grid, key=lambda c: (c.score, -c.brier))
    knn = fit_pipeline(embeddings, chosen)      # a scikit-learn pipeline

Judged by balanced accuracy on validation *and* a stressed copy of it, half each: validation alone
is nearly separable and ranks nothing. Of equals the one with the lower Brier score.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from cxr_tf.neighbors.embeddings import Embeddings

# The grid. Odd numbers of neighbours only: with two classes there is then no tie to break.
NEIGHBOURS = (1, 3, 5, 7, 9, 11, 15, 21, 25, 31, 41, 51, 75, 101)

WEIGHTS = ("uniform", "distance")

METRICS = ("euclidean", "cosine")

REPRESENTATIONS = ("as is", "standardised", "PCA")

PCA_WIDTH = 64

# Above this an index as wide as the embedding would be a second copy of the data, in memory and in
# every file that is written: then only the PCA's few coordinates are searched.
WIDEST_INDEX = 256 * 1024**2


@dataclass(frozen=True)
class Candidate:
    """One cell of the grid, and how it did on validation and on its stressed copy."""

    representation: str
    metric: str
    weights: str
    k: int
    balanced_accuracy: float
    stressed_balanced_accuracy: float
    brier: float
    """Mean of both, every class counting alike."""

    @property
    def score(self) -> float:
        """What is chosen by, before `brier`."""
        # Rounded, so that the last bit of a sum does not decide between equals.
        return round((self.balanced_accuracy + self.stressed_balanced_accuracy) / 2, 9)


def search(embeddings: Embeddings) -> list[Candidate]:
    """Every cell of the grid, judged on validation; one neighbour search per metric and space."""
    train, val = slice(0, embeddings.indexed), embeddings.rows("val")
    labels = embeddings.labels
    truth = np.concatenate([labels[val], labels[val]])
    v = val.stop - val.start
    classes = int(labels.max()) + 1
    largest = embeddings.indexed
    found = []
    for representation in representations(embeddings.indexed, embeddings.width):
        for metric in METRICS:
            steps, values = fit_steps(representation, metric, embeddings)
            stressed = Pipeline(steps).transform(embeddings.stressed) if steps else (
                embeddings.stressed
            )  # fmt: skip
            queries = np.concatenate([values[val], stressed])
            knn = KNeighborsClassifier(
                min(largest, max(NEIGHBOURS)), algorithm="brute", metric="euclidean"
            ).fit(values[train], labels[train])
            distances, rows = knn.kneighbors(queries)
            del knn, values
            for weights in WEIGHTS:
                for k in (k for k in NEIGHBOURS if k <= largest):
                    shares = vote(distances[:, :k], labels[rows[:, :k]], weights, classes)
                    found.append(
                        Candidate(
                            representation=representation,
                            metric=metric,
                            weights=weights,
                            k=k,
                            balanced_accuracy=balanced_accuracy(truth[:v], shares[:v]),
                            stressed_balanced_accuracy=balanced_accuracy(truth[v:], shares[v:]),
                            brier=balanced_brier(truth, shares),
                        )
                    )
    return found


def representations(rows: int, width: int) -> tuple[str, ...]:
    """Which are tried: those as wide as the embedding only while an index of them is small."""
    return REPRESENTATIONS if rows * width * 4 <= WIDEST_INDEX else ("PCA",)


def fit_steps(
    representation: str, metric: str, embeddings: Embeddings
) -> tuple[list[tuple[str, Any]], np.ndarray]:
    """Preprocessing fitted on the training rows, and all embeddings after it, float32 [N, E].

    Reads the embeddings and changes them in place, so that they are there once. The cosine metric
    is unit length and Euclidean distance, d^2 = 2 (1 - cosine), which ranks the same.
    """
    values = embeddings.read()
    train = slice(0, embeddings.indexed)
    steps: list[tuple[str, Any]] = []
    if representation in ("standardised", "PCA"):
        scaler = StandardScaler(copy=False)
        # In parts, because the fit makes a copy of what it is given, in float64.
        for start in range(0, embeddings.indexed, 4096):
            scaler.partial_fit(values[start : min(start + 4096, embeddings.indexed)])
        scaler.transform(values)
        steps.append(("standardise", scaler))
    if representation == "PCA":
        width = min(PCA_WIDTH, *values[train].shape)
        # By way of the covariance, the one solver that does not copy what it is given; but not for
        # fewer images than numbers, when the covariance is the larger matrix by far.
        wide = embeddings.indexed < values.shape[1]
        solver = "full" if wide else "covariance_eigh"
        pca = PCA(width, svd_solver=solver, copy=wide).fit(values[train])
        values = pca.transform(values)
        steps.append(("project", pca))
    if metric == "cosine":
        unit = Normalizer(copy=False).fit(values[train])
        unit.transform(values)
        steps.append(("unit_length", unit))
    # What is pickled must not change the arrays of those who use it.
    for _, step in steps:
        step.set_params(copy=True)
    return steps, values


def before_knn(knn: Pipeline, values: np.ndarray) -> np.ndarray:
    """Embeddings float32 [N, D] after the steps that come before the neighbours, if there are any.

    scikit-learn cannot transform by a pipeline of no steps.
    """
    return knn[:-1].transform(values) if len(knn.steps) > 1 else values


def fit_pipeline(embeddings: Embeddings, chosen: Candidate) -> Pipeline:
    """The chosen candidate as a scikit-learn pipeline: embeddings float32 [N, D] -> class index."""
    steps, values = fit_steps(chosen.representation, chosen.metric, embeddings)
    train = slice(0, embeddings.indexed)
    knn = KNeighborsClassifier(
        chosen.k, weights=chosen.weights, algorithm="brute", metric="euclidean"
    )
    knn.fit(values[train], embeddings.labels[train])
    return Pipeline([*steps, ("knn", knn)])


def vote(distances: np.ndarray, neighbours: np.ndarray, weights: str, classes: int) -> np.ndarray:
    """Shares of the vote, float [N, C], as KNeighborsClassifier counts them.

    distances: [N, k] ascending; neighbours: int [N, k], their labels.
    """
    given = np.ones(distances.shape)
    if weights == "distance":
        identical = distances == 0
        with np.errstate(divide="ignore"):
            given = np.where(identical.any(axis=1, keepdims=True), identical, 1 / distances)
    votes = np.stack([np.where(neighbours == c, given, 0).sum(axis=1) for c in range(classes)], 1)
    return votes / votes.sum(axis=1, keepdims=True)


def balanced_accuracy(labels: np.ndarray, shares: np.ndarray) -> float:
    """Mean recall of the classes; labels int [N], shares [N, C]."""
    right = shares.argmax(axis=1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def balanced_brier(labels: np.ndarray, shares: np.ndarray) -> float:
    """Brier score with every class counting alike."""
    squared = ((shares - np.eye(shares.shape[1])[labels]) ** 2).sum(axis=1) / 2
    return float(np.mean([squared[labels == c].mean() for c in np.unique(labels)]))
