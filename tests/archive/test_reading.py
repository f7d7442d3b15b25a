"""Tests of reading images from any source, and of writing files atomically."""

import errno
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

from archive_workers import RECIPE, make_worker, plan_of, predict, settings

from cxr_tf.archive import sources, storage
from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan
from cxr_tf.archive.shards import open_shard
from cxr_tf.archive.sources import Image, Reader, Unreachable
from cxr_tf.archive.storage import open_storage
from cxr_tf.archive.worker import Worker
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction.client import BadImages


class Flaky(MemoryFileSystem):
    """A store whose reads raise the errors in `failures`, last first, until the list is empty."""

    protocol = "flaky"
    cachable = False
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        if self.failures:
            raise self.failures.pop()
        return super().cat_file(path, start, end)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def flaky() -> type[Flaky]:
    Flaky().pipe_file("/a.png", b"radiograph")
    Flaky.failures = []
    return Flaky


def test_transient_failures_are_retried_after_growing_pauses(flaky, without_pauses) -> None:
    flaky.failures = [OSError("503 Slow Down"), TimeoutError(), OSError("cut off at 5 of 10 bytes")]
    assert Reader()(Image("flaky://a.png")) == b"radiograph"
    assert len(without_pauses) == 3
    assert all(2**k / 2 <= pause <= 0.75 * 2**k for k, pause in enumerate(without_pauses))


def test_unreachable_and_missing_files_are_distinguished(flaky, without_pauses) -> None:
    flaky.failures = [OSError("503 Slow Down")] * 3
    with pytest.raises(Unreachable, match="unreachable: 503 Slow Down"):
        Reader(retries=2)(Image("flaky://a.png"))
    assert len(without_pauses) == 2
    with pytest.raises(FileNotFoundError) as missing:
        Reader()(Image("flaky://b.png"))
    assert missing.value.strerror == os.strerror(errno.ENOENT) and len(without_pauses) == 2
    flaky.failures = [PermissionError("the token has expired")]
    with pytest.raises(Unreachable, match="unreachable: Permission denied"):
        Reader()(Image("flaky://a.png"))


def test_stale_network_share_is_retried(
    tmp_path: Path, without_pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))] * 2

    def read(path: Path) -> bytes:
        if stale:
            raise stale.pop()
        return b"radiograph"

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "read_bytes", read)
    assert Reader()(Image(str(tmp_path / "a.png"))) == b"radiograph" and len(without_pauses) == 2


def test_missing_disk_is_an_error_and_writes_no_shard(tmp_path: Path) -> None:
    (tmp_path / "disk/ward").mkdir(parents=True)
    for name in "abc":
        (tmp_path / f"disk/ward/{name}.png").write_bytes(b"radiograph")
    plan = plan_of(tmp_path / "out", [tmp_path / "disk"])
    worker = make_worker()(settings(tmp_path / "out"))
    (tmp_path / "disk/ward").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="disk/ward, with all 3 images of a shard, does not exist"):
        worker.score(0)
    assert plan.missing() == [0]
    (tmp_path / "disk/ward").mkdir()
    worker.score(0)
    table = open_shard(plan.storage.open("shards/00000.parquet")).read()
    assert set(table["reason"].to_pylist()) == {os.strerror(errno.ENOENT)}


def test_images_that_only_one_signature_rejects_are_an_error(tmp_path: Path) -> None:
    def picky(contents):
        if rejected := {k: "odd" for k, content in enumerate(contents) if content == b"odd"}:
            raise BadImages(rejected)
        return {"embedding": np.zeros((len(contents), 4), np.float32)}

    (tmp_path / "a.png").write_bytes(b"odd")
    recipe = replace(RECIPE, signatures=dict.fromkeys(("serving_default", "embed"), "tensorflow"))
    plan = Plan.create(open_storage(str(tmp_path / "out")), recipe)
    plan.extended([Image(str(tmp_path / "a.png"))])
    worker = Worker(settings(tmp_path / "out"), lambda *_: [predict, picky])
    with pytest.raises(RuntimeError, match="'serving_default' accepted were rejected by 'embed'"):
        worker.score(0)


def test_archive_members_equal_the_packed_files(tmp_path: Path, phantoms: Path) -> None:
    files = sorted(phantoms.glob("t*/*/*.png"))[:3]
    long_name = "x" * 120 + ".png"  # takes a header of its own
    with tarfile.open(tmp_path / "films.tar", "w") as tar:
        for k, file in enumerate(files):
            tar.add(file, long_name if k == 1 else file.name)
    with zipfile.ZipFile(tmp_path / "films.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in files:
            zipped.write(file, file.name)
    memory = fsspec.filesystem("memory")
    read = Reader()
    for suffix in ("tar", "zip"):
        memory.pipe_file(f"/films.{suffix}", (tmp_path / f"films.{suffix}").read_bytes())
        for archive in (str(tmp_path / f"films.{suffix}"), f"memory://films.{suffix}"):
            images = list(list_images((archive,)))
            assert [read(i) for i in images] == [f.read_bytes() for f in files]
    # Rewritten since it was planned: the old positions hold something else.
    tar_images = list(list_images((str(tmp_path / "films.tar"),)))
    with tarfile.open(tmp_path / "films.tar", "w") as tar:
        tar.add(files[2], "other.png")
    for image in tar_images[1:]:
        with pytest.raises(UserError, match=r"archive has changed|archive ends before"):
            read(image)


def test_dicom_at_a_url_is_read_as_on_disk(tmp_path: Path) -> None:
    pydicom = pytest.importorskip(
        "pydicom", reason="pydicom is not installed (requirements-dicom.txt)"
    )
    pydicom_data = pytest.importorskip("pydicom.data")
    from cxr_tf.serving.prediction.client import read_image

    dataset = pydicom.dcmread(pydicom_data.get_testdata_file("CT_small.dcm"))
    dataset.Modality = "DX"
    dataset.save_as(tmp_path / "radiograph")
    content = (tmp_path / "radiograph").read_bytes()
    memory = fsspec.filesystem("memory")
    for name, broken in (("1.2.840.113", False), ("a.dcm", False), ("b.dcm", True)):
        data = content[: len(content) // 2] if broken else content
        memory.pipe_file(f"/{name}", data)
        (tmp_path / name).write_bytes(data)
        outcomes = []
        for path, read in ((str(tmp_path / name), read_image), (f"memory://{name}", Reader())):
            try:
                outcomes.append(read(Image(path) if path.startswith("memory") else path))
            except UserError as error:
                outcomes.append(str(error).removeprefix(f"{path}: "))
        assert outcomes[0] == outcomes[1]
        assert isinstance(outcomes[0], str) == broken


# ---------------------------------------------------------------------- output


@pytest.mark.parametrize("url", ["{}/out", "memory://out-{}"])
def test_an_existing_file_is_not_created_again(tmp_path: Path, url: str) -> None:
    out = open_storage(url.format(tmp_path if "memory" not in url else tmp_path.name))
    assert out.create("shards/00001.parquet", b"first")
    assert not out.create("shards/00001.parquet", b"second")
    assert out.read("shards/00001.parquet") == b"first"
    assert out.names("shards") == ["00001.parquet"] and out.names("lists") == []
    assert out.exists("shards/00001.parquet") and not out.exists("shards/00002.parquet")
    assert list(out.modified("shards")) == ["00001.parquet"] or not out.is_local
    out.replace("summary.json", b"1")
    out.replace("summary.json", b"2")
    assert out.read("summary.json") == b"2"
    out.remove("shards/00001.parquet")
    assert out.names("shards") == []


def test_a_full_disk_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = open_storage(str(tmp_path / "out"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        out.create("shards/00001.parquet", b"content")
    assert list((tmp_path / "out/shards").iterdir()) == []


def test_file_system_without_links_uses_renames(tmp_path: Path, monkeypatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(storage.os, "link", no_links)
    out = open_storage(str(tmp_path / "out"))
    assert out.create("a", b"first") and not out.create("a", b"second")
    assert out.read("a") == b"first" and [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_only_unfinished_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = [f".1.parquet.{host}-{dead.pid}-0.writing", ".2.parquet.elsewhere-1-0.writing"]
    kept = [f".3.parquet.{host}-{os.getpid()}-0.writing", ".4.parquet.elsewhere-1-0.writing", "5"]
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in left + kept:
        (shards / name).touch()
    os.utime(shards / left[1], (0, 0))
    open_storage(str(tmp_path)).clear_unfinished()
    assert sorted(p.name for p in shards.iterdir()) == sorted(kept)


def test_unknown_protocol_is_a_user_error() -> None:
    with pytest.raises(UserError, match="gopher"):
        open_storage("gopher://x/y")
