"""Images and results in an object store with refusals, delayed listings and broken downloads."""

from pathlib import Path

import pytest

pytest.importorskip("moto", reason="moto is not installed (requirements-dev.txt)")
pytest.importorskip("s3fs", reason="s3fs is not installed (requirements-dev.txt)")
pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

import fsspec
from archive_workers import RECIPE, make_worker, settings, undisturbed
from flaky_s3 import FlakyStore, flaky_s3

from cxr_tf.archive import sources
from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan
from cxr_tf.archive.sources import Image, Reader
from cxr_tf.archive.storage import open_storage
from cxr_tf.errors import UserError


@pytest.fixture(scope="module")
def store():
    with flaky_s3() as store:
        s3 = fsspec.filesystem("s3")
        s3.mkdir("pacs")
        for k in range(20):
            s3.pipe_file(f"pacs/2025/{k:02d}.png", f"radiograph {k}".encode() * 100)
        yield store


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("asyncio.sleep", no_sleep)


async def no_sleep(seconds: float, result: object = None) -> object:
    return result


def score(plan: Plan, shards: list[int]) -> None:
    worker = make_worker()(settings(plan.storage.absolute, retries=3))
    for shard in shards:
        worker.score(shard)


def content(plan: Plan) -> dict[str, bytes]:
    return {name: plan.storage.read(f"shards/{name}") for name in plan.storage.names("shards")}


def test_archive_in_an_object_store_equals_one_on_disk(store: FlakyStore, tmp_path: Path) -> None:
    images = list(list_images(("s3://pacs/2025/",)))
    assert [i.path for i in images] == [f"s3://pacs/2025/{k:02d}.png" for k in range(20)]
    expected = {}
    for out in (str(tmp_path / "out"), "s3://pacs/scores"):
        plan, added = Plan.create(open_storage(out), RECIPE).extended(images)
        assert (added, plan.shards) == (20, 3)
        score(plan, plan.missing())
        assert plan.missing() == []
        expected[out] = content(plan)
    assert expected["s3://pacs/scores"] == expected[str(tmp_path / "out")] == undisturbed(plan)


def test_refused_requests_and_broken_downloads_are_retried(store: FlakyStore) -> None:
    read = Reader(retries=3)
    expected = b"radiograph 3" * 100
    for faults in (["cut"], [503, "cut", 503], ["cut", "cut", 503]):
        store.faults = list(faults)
        assert read(Image("s3://pacs/2025/03.png")) == expected
        assert store.faults == []


def test_no_shard_is_written_if_the_store_is_unreachable(store: FlakyStore) -> None:
    plan = Plan.create(open_storage("s3://pacs/down"), RECIPE)
    plan, _ = plan.extended([Image(f"s3://nowhere/{k}.png") for k in range(3)])
    read = Reader(retries=1)
    with pytest.raises(OSError, match="No such file"):  # a bucket that does not exist
        read(Image("s3://nowhere/0.png"))
    plan, _ = plan.extended([Image(f"s3://pacs/2025/{k:02d}.png") for k in range(8)])
    worker = make_worker()(settings("s3://pacs/down", retries=0))
    worker.read._fetch = lambda image: (_ for _ in ()).throw(OSError("503"))
    with pytest.raises(UserError, match="and all other images of its shard: unreachable: 503"):
        worker.score(1)
    assert 1 in plan.missing()


def test_shards_missing_from_late_listings_are_written_once(store: FlakyStore) -> None:
    plan = Plan.create(open_storage("s3://pacs/late"), RECIPE)
    plan, _ = plan.extended(list_images(("s3://pacs/2025/",)))
    score(plan, [0, 1])
    before = content(plan)
    store.late = {"00001.parquet", "00000.parquet"}
    try:
        assert plan.missing() == [0, 1, 2] and plan.has(1)
        assert Plan.read(open_storage("s3://pacs/late")).images == 20  # asked for by name
        score(plan, plan.missing())
    finally:
        store.late = set()
    assert not plan.storage.create("shards/00000.parquet", b"another")
    after = content(plan)
    assert {name: after[name] for name in before} == before and len(after) == 3
    store.late = {"07.png"}
    try:
        assert len(list(list_images(("s3://pacs/2025/",)))) == 19
    finally:
        store.late = set()
    assert plan.extended(list_images(("s3://pacs/2025/",)))[1] == 0
