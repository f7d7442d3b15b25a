"""t-SNE of embeddings, measures of its quality, and TensorBoard's projector.

    projected = project(embeddings, seed=0)
    quality(projected, labels, is_test, classes)
    write_projector(run.directory, {"t-SNE": projected.plane}, ...)

t-SNE preserves neighbours, not distances: clusters are real, their sizes and the gaps between them
are not (Wattenberg et al., "How to Use t-SNE Effectively", Distill 2016). Hence `quality`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openTSNE import TSNE
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from cxr_tf.files import replace_folder, temporary_sibling

# Of more points than this, a sample is drawn, because trustworthiness takes quadratic time and
# memory.
MOST_POINTS = 6000

# Below this number of points, t-SNE uses one thread.
FEW_POINTS = 1000

COORDINATES = 50

NEIGHBOURS = 10

PROJECTOR = "projector"


@dataclass(frozen=True)
class Projected:
    """Two projections of N embeddings.

    coordinates: float32 [N, 50], by PCA; plane: float32 [N, 2], by t-SNE of the coordinates.
    """

    coordinates: np.ndarray
    plane: np.ndarray


def draw_points(count: int, seed: int) -> np.ndarray:
    """Return the rows to show, ascending: all, or MOST_POINTS of them drawn at random."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MOST_POINTS, replace=False))


def project(values: np.ndarray, *, seed: int) -> Projected:
    """Project values, float32 [N, D], by PCA and then t-SNE (van der Maaten and Hinton 2008).

    Features are standardised first: their spread differs by orders of magnitude, and a few that are
    unrelated to the finding would dominate the picture. t-SNE is initialised by PCA, which
    preserves the large-scale arrangement and makes runs comparable (Kobak and Berens 2019).
    """
    width = min(COORDINATES, *values.shape)
    scaled = StandardScaler().fit_transform(values)
    solver = "full" if len(values) < values.shape[1] else "covariance_eigh"
    coordinates = PCA(width, svd_solver=solver).fit_transform(scaled)
    perplexity = min(30.0, (len(values) - 1) / 3)
    # Threads wait for each other in each of a thousand iterations, which takes minutes on a busy
    # machine; for few points one thread takes a second or two.
    threads = 1 if len(values) < FEW_POINTS else -1
    # Exact neighbours: those of openTSNE's default search depend on the number of threads. The rest
    # of the algorithm gives the same bits on one thread as on many.
    embedding = TSNE(
        perplexity=perplexity,
        initialization="pca",
        neighbors="exact",
        random_state=seed,
        n_jobs=threads,
    )
    plane = np.asarray(embedding.fit(coordinates))
    return Projected(coordinates.astype(np.float32), plane.astype(np.float32))


def quality(
    projected: Projected, labels: np.ndarray, is_test: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """Measure how faithful the projection is and how well classes separate.

    labels: int [N]; is_test: bool [N].

    - `trustworthiness`: in 0..1, the degree to which neighbours in the plane are neighbours in the
      embedding (Venna and Kaski 2001), 10 neighbours;
    - `silhouette`: in -1..1, of the test points by class, in the embedding (Rousseeuw 1987); NaN
      if test has only one class, or if no class has two points;
    - `purity/<class>`: the mean share of a test point's 10 nearest non-test points that have its
      class, over the test points of that class. Only test points are measured, because training has
      already separated the training points;
    - `purity`: the mean of these over the classes, in the embedding;
    - `plane_purity`: the same as `purity`, in the plane.
    """
    result = {
        "trustworthiness": float(
            trustworthiness(
                projected.coordinates,
                projected.plane,
                n_neighbors=min(NEIGHBOURS, (len(labels) - 1) // 2),
            )
        ),
        "silhouette": _silhouette(projected.coordinates[is_test], labels[is_test]),
    }
    for name, values in (("purity", projected.coordinates), ("plane_purity", projected.plane)):
        shares = _same_class(values, labels, is_test)
        truth = labels[is_test]
        per_class = [float(shares[truth == k].mean()) for k in range(len(classes))]
        result[name] = float(np.mean(per_class))
        if name == "purity":
            result |= {f"purity/{c}": p for c, p in zip(classes, per_class, strict=True)}
    return result


def caption(numbers: dict[str, float]) -> str:
    """Return a caption that states the measures of a projection."""
    return (
        f"10-NN purity {numbers['purity']:.2f}, silhouette {numbers['silhouette']:.2f}, "
        f"trustworthiness {numbers['trustworthiness']:.2f}"
    )


def write_projector(
    directory: Path,
    tensors: dict[str, np.ndarray],
    *,
    header: list[str],
    rows: list[list[Any]],
    thumbnails: np.ndarray,
) -> None:
    """Write the files of TensorBoard's projector to `projector/`, and its configuration beside it.

    tensors: {name: float32 [N, E]}; rows: N rows of metadata, by which points can be coloured and
    searched; thumbnails: uint8 [N, T, T, 1].
    """
    from tensorboard.plugins import projector

    config = projector.ProjectorConfig()
    side = thumbnails.shape[1]
    with temporary_sibling(directory / PROJECTOR) as partial:
        # The plugin reads tab-separated values without quotes.
        _write_table(partial / "metadata.tsv", [header, *rows])
        Image.fromarray(sprite(thumbnails)).save(partial / "sprite.png")
        for number, (name, values) in enumerate(tensors.items()):
            np.savetxt(partial / f"tensor-{number}.tsv", values, fmt="%.6g", delimiter="\t")
            entry = config.embeddings.add()
            entry.tensor_name = name
            entry.tensor_shape.extend(values.shape)
            # Relative to the configuration, so that a run can be moved.
            entry.tensor_path = f"{PROJECTOR}/tensor-{number}.tsv"
            entry.metadata_path = f"{PROJECTOR}/metadata.tsv"
            entry.sprite.image_path = f"{PROJECTOR}/sprite.png"
            entry.sprite.single_image_dim.extend([side, side])
        replace_folder(partial, directory / PROJECTOR)
    projector.visualize_embeddings(str(directory), config)


def sprite(thumbnails: np.ndarray) -> np.ndarray:
    """Arrange thumbnails, uint8 [N, T, T, 1], row by row in one square image, uint8 [S, S]."""
    n, side = thumbnails.shape[:2]
    across = int(np.ceil(np.sqrt(n)))
    sheet = np.zeros((across * across, side, side), np.uint8)
    sheet[:n] = thumbnails[..., 0]
    grid = sheet.reshape(across, across, side, side)
    return grid.transpose(0, 2, 1, 3).reshape(across * side, across * side)


def _same_class(values: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return, for each test point, the share of its nearest non-test points that have its class."""
    index = NearestNeighbors(algorithm="brute").fit(values[~is_test])
    count = min(NEIGHBOURS, int((~is_test).sum()))
    near = index.kneighbors(values[is_test], count, return_distance=False)
    return (labels[~is_test][near] == labels[is_test][:, None]).mean(axis=1)


def _silhouette(values: np.ndarray, labels: np.ndarray) -> float:
    """Return the silhouette; NaN for a single class, or if each image has its own class."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(silhouette_score(values, labels))


def _write_table(path: Path, rows: list[list[Any]]) -> None:
    def cell(value: Any) -> str:
        return re.sub(r"[\t\r\n]", " ", str(value))  # in a patient's name or a path

    text = "\n".join("\t".join(map(cell, row)) for row in rows) + "\n"
    path.write_text(text, encoding="utf-8")
