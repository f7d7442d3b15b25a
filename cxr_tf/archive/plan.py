"""The plan of an archive: settings in `plan.json`, paths in `lists/`, shards by number.

    plan = Plan.read(storage)
    plan.images_of(42)                       # the images of shard 42, in order
    missing = plan.missing()                 # numbers of the shards to compute

`plan.json` is written once and contains the model and settings of all shards. Each file in `lists/`
contains paths, and each of its row groups is a shard; shards are numbered consecutively over all
lists. New images are added as another list; earlier files never change.
"""

import contextlib
import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.archive.sources import Image
from cxr_tf.archive.storage import Storage
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)

PLAN = "plan.json"
LISTS = "lists"
SHARDS = "shards"

# Number of path digests sorted at a time, which bounds the memory of planning, and the largest
# number of temporary files that they are divided among.
SORTED_AT_A_TIME = 1 << 17
MOST_PARTS = 256

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
ENTRY = np.dtype([("digest", DIGEST), ("row", "<i8")])


@dataclass(frozen=True)
class Recipe:
    """The model and settings that all shards of an archive are computed with.

    model: folder of the version; digest: digest of its files; signatures: {name: runtime}, with the
    runtime tensorflow or openvino; precision: precision of OpenVINO; shard_size, batch_size: number
    of images.
    """

    model: str
    digest: str
    signatures: dict[str, str]
    precision: str
    shard_size: int
    batch_size: int

    def differences(self, other: "Recipe") -> list[str]:
        """Return the differences from another recipe in words; the model folder may differ."""
        differences = []
        if self.digest != other.digest:
            differences.append(
                f"model {self.model} ({self.digest[:8]}), not {other.model} ({other.digest[:8]})"
            )
        for name in ("signatures", "precision", "shard_size", "batch_size"):
            before, after = getattr(self, name), getattr(other, name)
            if before != after:
                differences.append(
                    f"{name.replace('_', ' ')} {_shown(before)}, not {_shown(after)}"
                )
        return differences


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} on {v}" for k, v in value.items())
    return str(value)


@dataclass(frozen=True)
class Plan:
    """A recipe and the lists of images.

    Paths are read from the row groups of the lists as needed; only counts are kept in memory.
    """

    storage: Storage
    recipe: Recipe
    model: str = ""
    """Folder of the model on this machine, if it differs from that in the recipe."""

    # ------------------------------------------------------------------ settings

    @staticmethod
    def exists(storage: Storage) -> bool:
        """Return whether the folder has a plan."""
        return storage.exists(PLAN)

    @staticmethod
    def read(storage: Storage) -> "Plan":
        """Read the plan of a folder; raise UserError if it is missing or damaged."""
        try:
            content = storage.read(PLAN)
        except FileNotFoundError:
            raise UserError(
                f"{storage.url} is not an archive: it has no {PLAN}. score_archive.py creates one "
                "from --images and --model"
            ) from None
        try:
            return Plan(storage, Recipe(**json.loads(content)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{storage.path(PLAN)} is damaged ({error}): restore it, or choose another --out"
            ) from None

    @staticmethod
    def create(storage: Storage, recipe: Recipe) -> "Plan":
        """Create the plan of a folder, or read the one that exists.

        Raises UserError with the differences if the existing plan has a different recipe.
        """
        content = json.dumps(asdict(recipe), indent=2) + "\n"
        if storage.create(PLAN, content.encode()):
            return Plan(storage, recipe, recipe.model)
        plan = Plan.read(storage)
        if differences := plan.recipe.differences(recipe):
            raise UserError(
                f"{storage.url} was started with {'; '.join(differences)}: use the same "
                "settings, or choose another --out"
            )
        return Plan(storage, plan.recipe, recipe.model)

    # ------------------------------------------------------------------ lists

    @functools.cached_property
    def lists(self) -> list[tuple[str, int, int]]:
        """The name, number of shards and number of images of each existing list, in order."""
        lists: list[tuple[str, int, int]] = []
        while True:
            # Lists are looked up one by one, because directory listings of some stores lag behind.
            name = f"{LISTS}/{len(lists):05d}.parquet"
            if not self.storage.exists(name):
                return lists
            metadata = self._list(name).metadata
            lists.append((name, metadata.num_row_groups, metadata.num_rows))

    @functools.cached_property
    def shards(self) -> int:
        """Number of shards in all lists."""
        return sum(shards for _, shards, _ in self.lists)

    @functools.cached_property
    def images(self) -> int:
        """Number of images in all lists."""
        return sum(images for _, _, images in self.lists)

    def images_of(self, shard: int) -> list[Image]:
        """Return the images of a shard, in order."""
        first = 0
        for name, shards, _ in self.lists:
            if shard < first + shards:
                table = self._list(name).read_row_group(shard - first)
                return [Image(*row) for row in zip(*table.to_pydict().values(), strict=True)]
            first += shards
        raise IndexError(shard)

    def size_of(self, shard: int) -> int:
        """Return the number of images in a shard."""
        first = 0
        for name, shards, _ in self.lists:
            if shard < first + shards:
                return int(self._list(name).metadata.row_group(shard - first).num_rows)
            first += shards
        raise IndexError(shard)

    def finished(self) -> set[int]:
        """Return the numbers of the shards that exist."""
        names = self.storage.names(SHARDS)
        return {int(name[:-8]) for name in names if name[:-8].isdigit()} & set(range(self.shards))

    def has(self, shard: int) -> bool:
        """Return whether a shard exists; it is looked up by name, not in a directory listing."""
        return self.storage.exists(shard_name(shard))

    def missing(self) -> list[int]:
        """Return the numbers of the shards that do not exist, ascending."""
        return sorted(set(range(self.shards)) - self.finished())

    @functools.cached_property
    def _files(self) -> dict[str, Any]:
        return {}

    def _list(self, name: str) -> Any:
        import pyarrow.parquet as pq

        if name not in self._files:
            self._files[name] = pq.ParquetFile(self.storage.open(name))
        return self._files[name]

    def refreshed(self) -> "Plan":
        """Return the plan with its lists read again."""
        return Plan(self.storage, self.recipe, self.model)

    def extended(self, images: Iterable[Image]) -> tuple["Plan", int]:
        """Add a list of the images that are new; return the extended plan and their number.

        Repeated paths are listed once. Memory does not grow with the number of images.
        """
        with tempfile.TemporaryDirectory() as work:
            listed = Path(work) / "listed.parquet"
            digests = Path(work) / "digests"
            with digests.open("wb") as file:
                for path in self.paths():
                    file.write(digest_of(path))
                known = self.images
                _write(listed, images, self.recipe.shard_size, file.write)
            plan = self
            while True:
                repeated = repeats(digests)[known:]
                fresh = int((~repeated).sum())
                if not fresh:
                    return plan, 0
                new = listed
                if repeated.any():
                    new = Path(work) / "new.parquet"
                    kept = (i for i, r in zip(_read(listed), repeated, strict=True) if not r)
                    _write(new, kept, self.recipe.shard_size)
                name = f"{LISTS}/{len(plan.lists):05d}.parquet"
                if plan.storage.create(name, new):
                    return plan.refreshed(), fresh
                # Another process has added a list in the meantime; its images are no longer new.
                plan = plan.refreshed()
                known = _rewrite_digests(digests, plan, listed)

    def paths(self) -> Iterator[str]:
        """Yield all paths in order, read one shard at a time."""
        for name, shards, _ in self.lists:
            for group in range(shards):
                yield from self._list(name).read_row_group(group, ["path"])["path"].to_pylist()


def _rewrite_digests(digests: Path, plan: Plan, listed: Path) -> int:
    with digests.open("wb") as file:
        for path in plan.paths():
            file.write(digest_of(path))
        for image in _read(listed):
            file.write(digest_of(image.path))
    return plan.images


def shard_name(shard: int) -> str:
    """Return the file name of a shard, which depends on its number only."""
    return f"{SHARDS}/{shard:05d}.parquet"


def digest_of(path: str) -> bytes:
    """Return a 16-byte digest, by which paths are compared; collisions are negligible."""
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


def repeats(digests: Path, at_a_time: int = SORTED_AT_A_TIME) -> np.ndarray:
    """Return whether each of the N digests in a file has occurred before in it, bool [N].

    The digests are partitioned by value into temporary files, which are sorted one by one: the
    memory used is N bytes plus a constant. at_a_time: approximate number of digests that are sorted
    at a time.
    """
    count = digests.stat().st_size // DIGEST.itemsize
    repeated = np.zeros(count, bool)
    parts = min(-(-count // at_a_time), MOST_PARTS)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(parts)]
        for start in range(0, count, at_a_time):
            offset = start * DIGEST.itemsize
            block = np.fromfile(digests, DIGEST, at_a_time, offset=offset)
            entries = np.zeros(len(block), ENTRY)
            entries["digest"], entries["row"] = block, np.arange(start, start + len(block))
            part_of = block["high"] % np.uint64(parts)
            order = np.argsort(part_of, kind="stable")
            ends = np.searchsorted(part_of[order], np.arange(1, parts))
            for file, part in zip(files, np.split(entries[order], ends), strict=True):
                file.write(part.tobytes())
        for file in files:
            file.seek(0)
            part = np.frombuffer(file.read(), ENTRY)
            # Sort by value, and equal digests by their order in the list.
            digest = part["digest"]
            order = np.lexsort((part["row"], digest["low"], digest["high"]))
            same = digest[order[1:]] == digest[order[:-1]]
            repeated[part["row"][order[1:]][same]] = True
    return repeated


# ---------------------------------------------------------------------- files of lists


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("length", pa.int64(), nullable=False),
        ]
    )


def _write(path: Path, images: Iterable[Image], group: int, digest: Any = None) -> None:
    """Write a list with `group` images per row group; call `digest` with each path's digest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows: list[Image] = []

        def flush() -> None:
            columns = [
                pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group)
            rows.clear()

        for image in images:
            rows.append(image)
            if digest:
                digest(digest_of(image.path))
            if len(rows) == group:
                flush()
        if rows:
            flush()


def _read(path: Path) -> Iterator[Image]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group)
        for row in zip(*table.to_pydict().values(), strict=True):
            yield Image(*row)
