"""What is to be computed: settings in `plan.json`, paths in `lists/`, shards by number.

    plan = Plan.read(storage)
    plan.images_of(42)                       # the images of shard 42, in order
    missing = plan.missing()                 # numbers of the shards that are not there yet

`plan.json` is written once and says with what every shard is computed. Each file in `lists/` holds
paths, and each of its row groups is a shard; shards are numbered through all lists. When there are
new images, another list is added, and no earlier file changes.
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

# Digests of paths that are sorted at a time, which bounds the memory of planning; and the most
# files that they are put into for it.
SORTED_AT_A_TIME = 1 << 17
MOST_PARTS = 256

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
ENTRY = np.dtype([("digest", DIGEST), ("row", "<i8")])


@dataclass(frozen=True)
class Recipe:
    """With what every shard of an archive is computed.

    model: the version's folder; digest: of its files. signatures: {name: what runs it}, tensorflow
    or openvino. precision: of OpenVINO. shard_size, batch_size: in images.
    """

    model: str
    digest: str
    signatures: dict[str, str]
    precision: str
    shard_size: int
    batch_size: int

    def differences(self, other: "Recipe") -> list[str]:
        """What another one would change, in words. The same model elsewhere is no change."""
        found = []
        if self.digest != other.digest:
            found.append(
                f"model {self.model} ({self.digest[:8]}), not {other.model} ({other.digest[:8]})"
            )
        for name in ("signatures", "precision", "shard_size", "batch_size"):
            before, after = getattr(self, name), getattr(other, name)
            if before != after:
                found.append(f"{name.replace('_', ' ')} {_shown(before)}, not {_shown(after)}")
        return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} on {v}" for k, v in value.items())
    return str(value)


@dataclass(frozen=True)
class Plan:
    """A recipe and the lists of images.

    Images of one list stand in its row groups; only their numbers are held.
    """

    storage: Storage
    recipe: Recipe
    model: str = ""
    """Where the model lies on this machine, if not where the recipe says."""

    # ------------------------------------------------------------------ settings

    @staticmethod
    def exists(storage: Storage) -> bool:
        """Whether the folder has a plan."""
        return storage.exists(PLAN)

    @staticmethod
    def read(storage: Storage) -> "Plan":
        """The plan of a folder; UserError where there is none, or a damaged one."""
        try:
            content = storage.read(PLAN)
        except FileNotFoundError:
            raise UserError(
                f"{storage.url} is not an archive: it has no {PLAN}; give --images and --model"
            ) from None
        try:
            return Plan(storage, Recipe(**json.loads(content)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{storage.path(PLAN)} is damaged ({error})") from None

    @staticmethod
    def create(storage: Storage, recipe: Recipe) -> "Plan":
        """The plan of a folder, written if it is the first.

        Raises UserError that names the difference where the folder has another one.
        """
        content = json.dumps(asdict(recipe), indent=2) + "\n"
        if storage.create(PLAN, content.encode()):
            return Plan(storage, recipe, recipe.model)
        plan = Plan.read(storage)
        if differences := plan.recipe.differences(recipe):
            raise UserError(
                f"{storage.url} is computed with {'; '.join(differences)}: give the same, or "
                "choose another --out"
            )
        return Plan(storage, plan.recipe, recipe.model)

    # ------------------------------------------------------------------ lists

    @functools.cached_property
    def lists(self) -> list[tuple[str, int, int]]:
        """(name, shards, images) of each list that there is, in order."""
        found: list[tuple[str, int, int]] = []
        while True:
            # Asked one by one, because listings of some stores lag behind.
            name = f"{LISTS}/{len(found):05d}.parquet"
            if not self.storage.exists(name):
                return found
            metadata = self._list(name).metadata
            found.append((name, metadata.num_row_groups, metadata.num_rows))

    @functools.cached_property
    def shards(self) -> int:
        """How many shards there are in all."""
        return sum(shards for _, shards, _ in self.lists)

    @functools.cached_property
    def images(self) -> int:
        """How many images there are in all."""
        return sum(images for _, _, images in self.lists)

    def images_of(self, shard: int) -> list[Image]:
        """The images of a shard, in order."""
        first = 0
        for name, shards, _ in self.lists:
            if shard < first + shards:
                table = self._list(name).read_row_group(shard - first)
                return [Image(*row) for row in zip(*table.to_pydict().values(), strict=True)]
            first += shards
        raise IndexError(shard)

    def size_of(self, shard: int) -> int:
        """How many images a shard has."""
        first = 0
        for name, shards, _ in self.lists:
            if shard < first + shards:
                return int(self._list(name).metadata.row_group(shard - first).num_rows)
            first += shards
        raise IndexError(shard)

    def finished(self) -> set[int]:
        """Numbers of the shards that are there."""
        names = self.storage.names(SHARDS)
        return {int(name[:-8]) for name in names if name[:-8].isdigit()} & set(range(self.shards))

    def has(self, shard: int) -> bool:
        """Whether the shard is there, by its name and not by a listing."""
        return self.storage.exists(shard_name(shard))

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there, ascending."""
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
        """The same plan, its lists looked up again."""
        return Plan(self.storage, self.recipe, self.model)

    def extended(self, images: Iterable[Image]) -> tuple["Plan", int]:
        """The plan with a further list of those images that it does not have; how many they are.

        Each path is taken once. Memory does not grow with their number.
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
                # Another process has added a list in the meantime: what is in it is not new.
                plan = plan.refreshed()
                known = _rewrite_digests(digests, plan, listed)

    def paths(self) -> Iterator[str]:
        """All paths, in order, a shard at a time."""
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
    """The file of a shard: the same number, the same name, always."""
    return f"{SHARDS}/{shard:05d}.parquet"


def digest_of(path: str) -> bytes:
    """16 bytes by which paths are compared: no two of any number will ever share them."""
    return hashlib.blake2b(path.encode(), digest_size=16).digest()


def repeats(digests: Path) -> np.ndarray:
    """bool [N]: whether the same digest stands earlier in a file of N digests.

    Parts of the range of values go into files of their own, and are sorted one by one: memory is N
    bytes and a constant.
    """
    count = digests.stat().st_size // DIGEST.itemsize
    repeated = np.zeros(count, bool)
    parts = min(-(-count // SORTED_AT_A_TIME), MOST_PARTS)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(parts)]
        for start in range(0, count, SORTED_AT_A_TIME):
            offset = start * DIGEST.itemsize
            block = np.fromfile(digests, DIGEST, SORTED_AT_A_TIME, offset=offset)
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
            # By value, and of equal ones the first in the list first.
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
    """Writes a list, `group` images to a row group."""
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
