"""An embedding in the plane: t-SNE, numbers that say how far to trust it, TensorBoard's projector.

    projected = project(embeddings, seed=0)
    quality(projected, labels, is_test, classes)
    write_projector(run.directory, {"t-SNE": projected.plane}, ...)

t-SNE keeps neighbours, not distances: clusters are real, their sizes and the gaps between them are
not (Wattenberg et al., "How to Use t-SNE Effectively", Distill 2016). Hence the numbers.
"""

import re
import shutil
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

# Time and memory of trustworthiness grow with the square: beyond this, a sample is drawn.
MOST_POINTS = 6000

# Below this, t-SNE takes one thread.
FEW_POINTS = 1000

COORDINATES = 50

NEIGHBOURS = 10

PROJECTOR = "projector"


@dataclass(frozen=True)
class Projected:
    """coordinates: float32 [N, 50], by PCA; plane: float32 [N, 2], by t-SNE of those."""

    coordinates: np.ndarray
    plane: np.ndarray


def draw_points(count: int, seed: int) -> np.ndarray:
    """Rows to be shown, ascending: all, or MOST_POINTS of them drawn at random."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MOST_POINTS, replace=False))


def project(values: np.ndarray, *, seed: int) -> Projected:
    """PCA to 50 coordinates, then t-SNE (van der Maaten and Hinton 2008); values float32 [N, D].

    Standardised first: the spread of a backbone's features differs by orders of magnitude, and a
    few that have nothing to do with the finding would make the picture.
    Started from the PCA, which keeps the large-scale arrangement and makes runs alike (Kobak and
    Berens 2019).
    """
    width = min(COORDINATES, *values.shape)
    scaled = StandardScaler().fit_transform(values)
    solver = "full" if len(values) < values.shape[1] else "covariance_eigh"
    coordinates = PCA(width, svd_solver=solver).fit_transform(scaled)
    perplexity = min(30.0, (len(values) - 1) / 3)
    # Threads wait for each other in each of a thousand rounds: on a busy machine that takes
    # minutes, and of few points one thread takes a second or two.
    threads = 1 if len(values) < FEW_POINTS else -1
    # Exact neighbours: those of openTSNE's default search depend on the number of threads, and with
    # them the picture. All that follows gives the same bits on one thread as on many.
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
    """How faithful the picture is, and how well the classes part; labels int [N], is_test bool [N].

    - `trustworthiness`: in 0..1, how few neighbours in the plane are none in the embedding (Venna
      and Kaski 2001), 10 neighbours;
    - `silhouette`: in -1..1, of the test points by class, in the embedding (Rousseeuw 1987); NaN
      where test has one class alone, or no class twice;
    - `purity` and `purity/<class>`: the share of a test point's 10 nearest points outside test that
      are of its class; the mean over classes, and each. Of test points, because training has seen
      to it that training points lie right;
    - `plane_purity`: the same in the plane.
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
    """The numbers that stand with the picture."""
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
    """Files of TensorBoard's projector, under `projector/`, and its configuration in `directory`.

    tensors: {name: float32 [N, E]}; rows: N rows of metadata, by which points can be coloured and
    searched; thumbnails: uint8 [N, T, T, 1].
    """
    from tensorboard.plugins import projector

    folder, beside = directory / PROJECTOR, directory / f".{PROJECTOR}.writing"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    config = projector.ProjectorConfig()
    # Tabs as separators: that is how the plugin reads it, and it knows no quotes.
    _write_table(beside / "metadata.tsv", [header, *rows])
    side = thumbnails.shape[1]
    Image.fromarray(sprite(thumbnails)).save(beside / "sprite.png")
    for number, (name, values) in enumerate(tensors.items()):
        np.savetxt(beside / f"tensor-{number}.tsv", values, fmt="%.6g", delimiter="\t")
        entry = config.embeddings.add()
        entry.tensor_name = name
        entry.tensor_shape.extend(values.shape)
        # Relative to the configuration, so that a run can be moved.
        entry.tensor_path = f"{PROJECTOR}/tensor-{number}.tsv"
        entry.metadata_path = f"{PROJECTOR}/metadata.tsv"
        entry.sprite.image_path = f"{PROJECTOR}/sprite.png"
        entry.sprite.single_image_dim.extend([side, side])
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    projector.visualize_embeddings(str(directory), config)


def sprite(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, T, T, 1] row by row in one square image, uint8 [S, S]."""
    n, side = thumbnails.shape[:2]
    across = int(np.ceil(np.sqrt(n)))
    sheet = np.zeros((across * across, side, side), np.uint8)
    sheet[:n] = thumbnails[..., 0]
    grid = sheet.reshape(across, across, side, side)
    return grid.transpose(0, 2, 1, 3).reshape(across * side, across * side)


def _same_class(values: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """For each test point the share of its nearest points outside test that are of its class."""
    index = NearestNeighbors(algorithm="brute").fit(values[~is_test])
    count = min(NEIGHBOURS, int((~is_test).sum()))
    near = index.kneighbors(values[is_test], count, return_distance=False)
    return (labels[~is_test][near] == labels[is_test][:, None]).mean(axis=1)


def _silhouette(values: np.ndarray, labels: np.ndarray) -> float:
    """NaN where it is not defined: one class alone, or every image a class of its own."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return float("nan")
    return float(silhouette_score(values, labels))


def _write_table(path: Path, rows: list[list[Any]]) -> None:
    def cell(value: Any) -> str:
        return re.sub(r"[\t\r\n]", " ", str(value))  # of a patient's name, or of a path

    text = "\n".join("\t".join(map(cell, row)) for row in rows) + "\n"
    path.write_text(text, encoding="utf-8")
