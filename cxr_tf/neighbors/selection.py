"""Choose the representation, metric, weights and k of the nearest neighbours on validation.

    grid = search(embeddings)
    chosen = max(grid, key=lambda c: (c.score, -c.brier))
    knn = fit_pipeline(embeddings, chosen)      # a scikit-learn pipeline

The criterion is balanced accuracy, averaged over validation and a perturbed copy of it: validation
alone is nearly separable and cannot rank the candidates. Within a class, the images that
contradict the shortcut count as much as all others together. The Brier score breaks ties.
"""

from collections.abc import Sequence
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

# In bytes. An index as wide as the embedding is a second copy of the data, in memory and in every
# exported file: above this size only the PCA coordinates are searched.
WIDEST_INDEX = 256 * 1024**2


@dataclass(frozen=True)
class Candidate:
    """One cell of the grid, with its scores on the validation set and on its perturbed copy."""

    representation: str
    metric: str
    weights: str
    k: int
    balanced_accuracy: float
    stressed_balanced_accuracy: float
    brier: float
    """The Brier score on both together, with equal weight for every class."""

    @property
    def score(self) -> float:
        """The criterion of the choice; `brier` breaks ties."""
        # Rounded, so that the last bit of a sum does not decide between equals.
        return round((self.balanced_accuracy + self.stressed_balanced_accuracy) / 2, 9)


def search(
    embeddings: Embeddings,
    weights: np.ndarray | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> list[Candidate]:
    """Evaluate every cell of the grid, with one search per metric and representation.

    weights [V]: how much each validation image counts within its class. neighbours: values of k.
    """
    train, val = slice(0, embeddings.indexed), embeddings.rows("val")
    labels = embeddings.labels
    truth = np.concatenate([labels[val], labels[val]])
    v = val.stop - val.start
    counts = np.ones(v) if weights is None else weights
    classes = int(labels.max()) + 1
    largest = embeddings.indexed
    candidates = []
    for representation in representations(embeddings.indexed, embeddings.width):
        for metric in METRICS:
            steps, values = fit_steps(representation, metric, embeddings)
            stressed = Pipeline(steps).transform(embeddings.stressed) if steps else (
                embeddings.stressed
            )  # fmt: skip
            queries = np.concatenate([values[val], stressed])
            knn = KNeighborsClassifier(
                min(largest, max(neighbours)), algorithm="brute", metric="euclidean"
            ).fit(values[train], labels[train])
            distances, rows = knn.kneighbors(queries)
            del knn, values
            for voting in WEIGHTS:
                for k in (k for k in neighbours if k <= largest):
                    shares = vote(distances[:, :k], labels[rows[:, :k]], voting, classes)
                    candidates.append(
                        Candidate(
                            representation=representation,
                            metric=metric,
                            weights=voting,
                            k=k,
                            balanced_accuracy=balanced_accuracy(truth[:v], shares[:v], counts),
                            stressed_balanced_accuracy=balanced_accuracy(
                                truth[v:], shares[v:], counts
                            ),
                            brier=balanced_brier(truth, shares, np.tile(counts, 2)),
                        )
                    )
    return candidates


def representations(rows: int, width: int) -> tuple[str, ...]:
    """Return the representations to try; full-width ones only if their index is small."""
    return REPRESENTATIONS if rows * width * 4 <= WIDEST_INDEX else ("PCA",)


def fit_steps(
    representation: str, metric: str, embeddings: Embeddings
) -> tuple[list[tuple[str, Any]], np.ndarray]:
    """Fit the preprocessing to the training rows; return its steps and all transformed rows.

    The transformed rows are float32 [N, E]. The embeddings are read and changed in place, so that
    memory holds one copy. The cosine metric is implemented as the Euclidean distance of vectors of
    unit length, d^2 = 2 (1 - cosine), which ranks neighbours in the same order.
    """
    values = embeddings.read()
    train = slice(0, embeddings.indexed)
    steps: list[tuple[str, Any]] = []
    if representation in ("standardised", "PCA"):
        scaler = StandardScaler(copy=False)
        # In parts, because the fit copies its input, in float64.
        for start in range(0, embeddings.indexed, 4096):
            scaler.partial_fit(values[start : min(start + 4096, embeddings.indexed)])
        scaler.transform(values)
        steps.append(("standardise", scaler))
    if representation == "PCA":
        width = min(PCA_WIDTH, *values[train].shape)
        # Only the covariance solver does not copy its input. With fewer images than features,
        # however, the covariance is by far the larger matrix.
        wide = embeddings.indexed < values.shape[1]
        solver = "full" if wide else "covariance_eigh"
        pca = PCA(width, svd_solver=solver, copy=wide).fit(values[train])
        values = pca.transform(values)
        steps.append(("project", pca))
    if metric == "cosine":
        unit = Normalizer(copy=False).fit(values[train])
        unit.transform(values)
        steps.append(("unit_length", unit))
    # The pickled pipeline must not change its callers' arrays.
    for _, step in steps:
        step.set_params(copy=True)
    return steps, values


def before_knn(knn: Pipeline, values: np.ndarray) -> np.ndarray:
    """Apply the preprocessing steps of a KNN pipeline, if it has any, to embeddings [N, D].

    scikit-learn itself cannot transform with an empty pipeline.
    """
    return knn[:-1].transform(values) if len(knn.steps) > 1 else values


def fit_pipeline(embeddings: Embeddings, chosen: Candidate) -> Pipeline:
    """Fit the chosen candidate: a pipeline from embeddings, float32 [N, D], to class indices."""
    steps, values = fit_steps(chosen.representation, chosen.metric, embeddings)
    train = slice(0, embeddings.indexed)
    knn = KNeighborsClassifier(
        chosen.k, weights=chosen.weights, algorithm="brute", metric="euclidean"
    )
    knn.fit(values[train], embeddings.labels[train])
    return Pipeline([*steps, ("knn", knn)])


def vote(distances: np.ndarray, neighbours: np.ndarray, weights: str, classes: int) -> np.ndarray:
    """Return each class's share of the vote, float [N, C], as in KNeighborsClassifier.

    distances: [N, k] ascending; neighbours: int [N, k], the labels of the neighbours.
    """
    weight = np.ones(distances.shape)
    if weights == "distance":
        identical = distances == 0
        with np.errstate(divide="ignore"):
            weight = np.where(identical.any(axis=1, keepdims=True), identical, 1 / distances)
    votes = np.stack([np.where(neighbours == c, weight, 0).sum(axis=1) for c in range(classes)], 1)
    return votes / votes.sum(axis=1, keepdims=True)


def balanced_accuracy(
    labels: np.ndarray, shares: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the mean recall of the classes; labels int [N], shares [N, C], weights [N]."""
    return _mean_over_classes(shares.argmax(axis=1) == labels, labels, weights)


def balanced_brier(
    labels: np.ndarray, shares: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the Brier score, averaged over classes; labels int [N], shares [N, C], weights [N]."""
    squared = ((shares - np.eye(shares.shape[1])[labels]) ** 2).sum(axis=1) / 2
    return _mean_over_classes(squared, labels, weights)


def _mean_over_classes(values: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> float:
    """Return the mean of the classes' weighted means of values [N]."""
    counts = np.ones(len(labels)) if weights is None else weights
    means = [
        np.average(values[labels == c], weights=counts[labels == c]) for c in np.unique(labels)
    ]
    return float(np.mean(means))
