"""Find similar cases in an archive by the distance of their embeddings.

    python scripts/fit_knn.py --archive scores/ --query new.png --neighbors 5 --output similar.csv

The distance is the cosine distance. With fewer than 200,000 embeddings, the search is exact and
reads the shards one by one. With more, it uses an inverted-file index of faiss
(IndexIVFScalarQuantizer with 1,024 lists or more and 8 bits per number), which is built once and
stored beside the shards; its recall is measured and reported.
"""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan, shard_name
from cxr_tf.archive.shards import open_shard
from cxr_tf.archive.sources import Reader, Unreachable
from cxr_tf.archive.storage import open_storage
from cxr_tf.archive.worker import WorkerSettings, load_predictors
from cxr_tf.config import FitKnn, check_numbers
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv
from cxr_tf.serving.prediction.batch_prediction import predict_readable, reason_of

log = logging.getLogger(__name__)

APPROXIMATE_FROM = 200_000

LEAST_LISTS = 1024

# Number of embeddings per list on which the centroids of the lists are trained.
TRAINED_PER_LIST = 64

# Number of embeddings of the archive that are used as queries to measure the recall.
SAMPLE = 200

RECALL = 0.98

INDEX = "similar.faiss"


@dataclass(frozen=True)
class Neighbors:
    """The nearest cases: archive rows int [Q, k]; distances float [Q, k], 1 - cosine, ascending."""

    rows: np.ndarray
    distances: np.ndarray


def fit_knn(settings: FitKnn, approximate_from: int = APPROXIMATE_FROM) -> dict[str, Any]:
    """Find the nearest cases to each query image, or only build the index and measure its recall.

    approximate_from: the search is approximate if there are at least this many embeddings. Returns
    the reported numbers. Raises UserError if the archive is not finished or has no embeddings, or a
    query image cannot be read.
    """
    check_numbers(settings, neighbors=1)
    plan = Plan.read(open_storage(settings.archive))
    if missing := plan.missing():
        raise UserError(
            f"{len(missing)} of {plan.shards} shards of {settings.archive} are missing: first "
            "finish the archive with score_archive.py"
        )
    if "embed" not in plan.recipe.signatures:
        raise UserError(
            f"{settings.archive} has no embeddings: score the images into another --out, with "
            "--signatures serving_default embed"
        )
    if settings.output and Path(settings.output).exists():
        raise UserError(f"{settings.output} exists: choose another --output")
    count = sum(len(values) for _, values in embeddings(plan))
    if not count:
        raise UserError(f"{settings.archive} has no image that could be read")
    k = min(settings.neighbors, count)
    index = open_index(plan, count) if count >= approximate_from else None
    report: dict[str, Any] = {"embeddings": count, "search": "exact" if index is None else "faiss"}
    if index is not None:
        report |= measure(plan, index, k)
        log.info(
            "recall@%d relative to exact search on %d images of the archive: %.3f, %.3f ms per "
            "query (nprobe %d)",
            *(k, report["sample"], report["recall"], report["milliseconds"], index.nprobe),
        )
    else:
        log.info("%d embeddings: the search is exact", count)
    if settings.query:
        paths, queries = embed_queries(plan, settings)
        neighbors = search(plan, index, queries, k)
        write_neighbors(plan, paths, neighbors, settings.output)
    return report


# ---------------------------------------------------------------------- embeddings


def embeddings(plan: Plan) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row of the first image, unit-length embeddings float32 [n, D]) of each shard.

    Rows are numbered over the readable images of all shards.
    """
    first = 0
    for shard in range(plan.shards):
        file = open_shard(plan.storage.open(shard_name(shard)))
        column = file.read(columns=["embedding"])["embedding"].combine_chunks().drop_null()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        if len(values):
            yield first, unit_length(values)
            first += len(values)


def unit_length(values: np.ndarray) -> np.ndarray:
    """Divide rows, float32 [N, D], by their norms; rows of zeros stay zero."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def embed_queries(plan: Plan, settings: FitKnn) -> tuple[list[str], np.ndarray]:
    """Return the paths of the query images, and their unit-length embeddings, float32 [Q, D]."""
    recipe = plan.recipe
    recipe = replace(recipe, signatures={"embed": recipe.signatures["embed"]})
    [embed] = load_predictors(WorkerSettings(settings.archive, recipe.model), recipe)
    images = list(list_images(settings.query))
    read = Reader()
    parts = []
    for start in range(0, len(images), recipe.batch_size):
        batch = images[start : start + recipe.batch_size]
        contents = []
        for image in batch:
            try:
                contents.append(read(image))
            except (UserError, OSError, Unreachable) as error:
                reason = reason_of(error, image.path)
                raise UserError(f"--query {image.path}: {reason}") from None
        result = predict_readable(embed, list(range(len(batch))), contents)
        for row, reason in result.reasons.items():
            raise UserError(f"--query {batch[row].path}: {reason}")
        parts.append(result.outputs["embedding"])
    return [image.path for image in images], unit_length(np.concatenate(parts))


# ---------------------------------------------------------------------- search


def search(plan: Plan, index: Any, queries: np.ndarray, k: int) -> Neighbors:
    """Find the k nearest cases to each query, with an index or, if it is None, exactly.

    queries: unit-length embeddings, float32 [Q, D].
    """
    if index is None:
        return exact(plan, queries, k)
    squared, rows = index.search(queries, k)
    return Neighbors(rows, squared / 2)  # |a - b|^2 = 2 (1 - cosine)


def exact(plan: Plan, queries: np.ndarray, k: int) -> Neighbors:
    """Find the k nearest cases to each query exactly, one shard at a time."""
    best = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1)
    for first, values in embeddings(plan):
        distances = np.concatenate([best, 1 - queries @ values.T], axis=1)
        numbers = np.arange(first, first + len(values))
        candidates = np.concatenate([rows, np.tile(numbers, (len(queries), 1))], axis=1)
        # A stable sort: equidistant cases keep the order of the archive.
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(distances, order, axis=1)
        rows = np.take_along_axis(candidates, order, axis=1)
    return Neighbors(rows, best)


def open_index(plan: Plan, count: int) -> Any:
    """Load or build the index of an archive; raise UserError if faiss is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(f"{count} embeddings need faiss: pip install 'faiss-cpu>=1.9'") from None
    description = f"{plan.recipe.digest} {plan.shards} {count}".encode()
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "index"
        if plan.storage.exists(INDEX):
            content = plan.storage.read(INDEX)
            if content.startswith(description + b"\n"):
                file.write_bytes(content[len(description) + 1 :])
                return faiss.read_index(str(file))
        started = time.monotonic()
        index = build_index(plan, count)
        faiss.write_index(index, str(file))
        plan.storage.replace(INDEX, description + b"\n" + file.read_bytes())
        log.info("index of %d embeddings: built in %.0f s", count, time.monotonic() - started)
    return index


def build_index(plan: Plan, count: int) -> Any:
    """Build an inverted-file index of all embeddings; it probes enough lists to reach RECALL."""
    import faiss

    lists = max(LEAST_LISTS, 2 ** round(math.log2(math.sqrt(count))))
    share = min(1.0, TRAINED_PER_LIST * lists / count)
    rng = np.random.default_rng(0)
    drawn = [v[rng.random(len(v)) < share] for _, v in embeddings(plan)]
    sample = np.concatenate(drawn)
    index: Any = faiss.index_factory(sample.shape[1], f"IVF{lists},SQ8")
    index.train(sample)
    del drawn, sample
    for _, values in embeddings(plan):
        index.add(values)
    index.nprobe = 8
    while index.nprobe < lists and measure(plan, index, 10)["recall"] < RECALL:
        index.nprobe *= 2
    return index


def measure(plan: Plan, index: Any, k: int) -> dict[str, Any]:
    """Measure the recall@k of an index relative to exact search, and the time per query.

    The queries are embeddings of the archive.
    """
    rng = np.random.default_rng(1)
    count = index.ntotal
    chosen = np.sort(rng.choice(count, min(SAMPLE, count), replace=False))
    queries = np.concatenate(
        [v[chosen[(chosen >= f) & (chosen < f + len(v))] - f] for f, v in embeddings(plan)]
    )
    expected = exact(plan, queries, k)
    started = time.perf_counter()
    result = search(plan, index, queries, k)
    seconds = time.perf_counter() - started
    hits = [len(set(a) & set(b)) / k for a, b in zip(result.rows, expected.rows, strict=True)]
    return {
        "recall": float(np.mean(hits)),
        "milliseconds": 1000 * seconds / len(queries),
        "sample": len(queries),
        "nprobe": int(index.nprobe),
    }


# ---------------------------------------------------------------------- output


def write_neighbors(plan: Plan, paths: list[str], neighbors: Neighbors, output: str) -> None:
    """Write or print the query, rank, path, label and distance of each neighbour."""
    wanted: set[Any] = set(neighbors.rows.ravel()) - {-1}
    known = dict(_cases(plan, wanted))
    header = ["query", "rank", "path", "label", "distance"]
    table: list[list[Any]] = []
    for query, path in enumerate(paths):
        for rank, row in enumerate(neighbors.rows[query].tolist()):
            if row >= 0:  # faiss returns -1 if the probed lists have fewer than k embeddings
                distance = max(float(neighbors.distances[query, rank]), 0.0)
                table.append([path, rank + 1, *known[row], f"{distance:.6g}"])
    if output:
        write_csv(Path(output), header, table)
        log.info("%d similar cases: %s", len(table), output)
        return
    for row in [header, *table]:
        log.info("  ".join(str(cell) for cell in row))


def _cases(plan: Plan, wanted: set[Any]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (row, (path, label)) of the given rows; the label is empty if the model has none."""
    first = 0
    for shard in range(plan.shards):
        file = open_shard(plan.storage.open(shard_name(shard)))
        names = [n for n in ("path", "label", "reason") if n in file.schema_arrow.names]
        table = file.read(columns=names)
        for case in (c for c in table.to_pylist() if c["reason"] is None):
            if first in wanted:
                yield first, (case["path"], case.get("label") or "")
            first += 1
