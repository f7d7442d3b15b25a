"""Tests of the listing of --images, and of plans."""

import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest

from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan, digest_of, repeats
from cxr_tf.archive.sources import Image
from cxr_tf.data.image_files import find_images
from cxr_tf.errors import UserError

pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

from archive_workers import RECIPE, plan_of

from cxr_tf.archive.storage import open_storage


def paths(*wanted: object) -> list[str]:
    return [image.path for image in list_images(tuple(map(str, wanted)))]


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A folder with names whose order depends on the sorting, and files that are not images."""
    for name in (
        "b/1.png",
        "b.png",
        "a/z/2.jpeg",
        "a/y.PNG",
        "a.dcm",
        "notes.txt",
        ".hidden/3.png",
    ):
        file = tmp_path / "ward" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "ward"


def test_folder_is_listed_as_by_predict(ward: Path) -> None:
    assert paths(ward) == find_images((str(ward),))
    assert len(paths(ward)) == 5
    assert paths(ward / "*.png", ward / "a") == find_images((str(ward / "*.png"), str(ward / "a")))


def test_linked_folder_is_entered_once(ward: Path) -> None:
    before = paths(ward)
    (ward / "a" / "loop").symlink_to(ward)
    (ward / "z").symlink_to(ward / "a")
    assert paths(ward) == before == find_images((str(ward),))


@pytest.mark.parametrize("text", ["path\n", "label;path\nx;", "sep=,\npath,label\n", "﻿Path\n"])
def test_paths_in_a_list_are_relative_to_its_folder(tmp_path: Path, text: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text + "../up.png\n")
    assert paths(file) == [str(tmp_path.parent / "up.png")]


def test_a_list_may_contain_urls_and_needs_a_path_in_every_row(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s3://pacs/a.png\n\nsub/b.png\n")
    assert paths(tmp_path / "list.txt") == ["s3://pacs/a.png", str(tmp_path / "sub/b.png")]
    (tmp_path / "list.csv").write_text("label,path\nsick,a.png\nsick,\n")
    with pytest.raises(UserError, match=r"list.csv, line 3: no path"):
        paths(tmp_path / "list.csv")
    (tmp_path / "other.csv").write_text("file,label\na.png,sick\n")
    with pytest.raises(UserError, match=r"no column path; its first line names file, label"):
        paths(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path\n\xff.png\n", "is not in UTF-8: save it in UTF-8"),
        (b"path\n" + b"a" * 200_000, "cannot be read as a CSV list: field larger than"),
    ],
)
def test_unreadable_list_is_refused_with_the_cause(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        paths(tmp_path / "list.csv")


def test_members_of_archives_are_listed(ward: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "films.tar", "w") as tar:
        tar.add(ward, "ward")
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as zipped:
        zipped.write(ward / "b.png", "ward/b.png")
        zipped.write(ward / "b.png", "__MACOSX/._b.png")
    in_tar = list(list_images((str(tmp_path / "films.tar"),)))
    names = {i.path.removesuffix(f"::{tmp_path}/films.tar").removeprefix("tar://") for i in in_tar}
    assert names == {"ward/b/1.png", "ward/b.png", "ward/a/z/2.jpeg", "ward/a/y.PNG", "ward/a.dcm"}
    content = (tmp_path / "films.tar").read_bytes()
    for image in in_tar:
        name = image.path[len("tar://ward/") :].split("::")[0]
        assert content[image.offset : image.offset + image.length] == name.encode()
    assert paths(tmp_path / "films.zip") == [f"zip://ward/b.png::{tmp_path}/films.zip"]
    with tarfile.open(tmp_path / "films.tgz.tar", "w:gz") as tar:
        tar.add(ward, "ward")
    with pytest.raises(UserError, match=r"cannot be read as a \.tar archive: .*compressed"):
        paths(tmp_path / "films.tgz.tar")


def test_folders_and_patterns_at_a_url_are_listed() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b/1.png", "b.png", "a/1.2.840.113", "a/image", "notes.txt", "list.csv"):
        memory.pipe_file(f"/listing/{name}", b"path\nb.png\n")
    expected = ["a/1.2.840.113", "a/image", "b/1.png", "b.png"]
    assert sorted(paths("memory://listing")) == sorted(f"memory:///listing/{n}" for n in expected)
    assert paths("memory://listing/*.png") == ["memory:///listing/b.png"]
    assert paths("memory://listing/list.csv") == ["memory://listing/b.png"]
    with pytest.raises(UserError, match="no such image"):
        paths("memory://listing/c")


@pytest.mark.parametrize("wanted", ["nowhere/", "*.png", "", "gopher://x/y"])
def test_items_without_images_are_refused(tmp_path: Path, wanted: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        paths(wanted)


# ---------------------------------------------------------------------- plan


def listed(*names: str) -> list[Image]:
    return [Image(name) for name in names]


def test_each_path_is_planned_once_and_new_paths_are_added(tmp_path: Path) -> None:
    plan = Plan.create(open_storage(str(tmp_path / "out")), RECIPE)
    names = [f"{k}.png" for k in range(20)]
    plan, added = plan.extended(listed(*names, "3.png", "4.png"))
    assert (added, plan.images, plan.shards) == (20, 20, 3)
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert plan.extended(listed(*names))[1] == 0
    plan, added = plan.extended(listed("new.png", *names, "new.png", "newer.png"))
    assert (added, plan.images, plan.shards) == (2, 22, 4)
    assert list(plan.paths()) == [*names, "new.png", "newer.png"]
    assert [i.path for i in plan.images_of(3)] == ["new.png", "newer.png"]
    assert [plan.size_of(s) for s in range(4)] == [8, 8, 4, 2]
    assert all(p.read_bytes() == content for p, content in first.items())


def test_concurrent_planners_plan_each_path_once(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "out"))
    one, two = Plan.create(storage, RECIPE), Plan.create(storage, RECIPE)
    assert (one.lists, two.lists) == ([], [])  # both have looked before either writes
    one.extended(listed("a.png", "b.png"))
    two, added = two.extended(listed("b.png", "c.png"))
    assert added == 1 and list(two.paths()) == ["a.png", "b.png", "c.png"]


def test_a_different_recipe_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    import dataclasses

    storage = open_storage(str(tmp_path / "out"))
    Plan.create(storage, RECIPE)
    before = (tmp_path / "out/plan.json").read_bytes()
    for change, message in (
        ({"digest": "abcdefghij"}, r"model nowhere \(digest\), not nowhere \(abcdefgh\)"),
        ({"precision": "int8"}, "precision float32, not int8"),
        ({"signatures": {"embed": "openvino"}}, "serving_default on tensorflow, not embed on op"),
        ({"shard_size": 9}, "shard size 8, not 9"),
    ):
        with pytest.raises(UserError, match=message):
            Plan.create(storage, dataclasses.replace(RECIPE, **change))
    moved = Plan.create(storage, dataclasses.replace(RECIPE, model="elsewhere"))
    assert (moved.recipe.model, moved.model) == ("nowhere", "elsewhere")
    assert (tmp_path / "out/plan.json").read_bytes() == before
    with pytest.raises(UserError, match="not an archive"):
        Plan.read(open_storage(str(tmp_path)))


def test_repeated_paths_are_detected_when_read_in_parts(tmp_path: Path) -> None:
    names = [str(k % 30) for k in range(50)]
    (tmp_path / "digests").write_bytes(b"".join(map(digest_of, names)))
    assert repeats(tmp_path / "digests", 7).tolist() == [k >= 30 for k in range(50)]
    (tmp_path / "none").write_bytes(b"")
    assert repeats(tmp_path / "none").tolist() == []


def test_only_complete_shards_of_the_plan_count_as_finished(tmp_path: Path, ward: Path) -> None:
    plan = plan_of(tmp_path / "out", [ward])
    assert plan.missing() == [0]
    (tmp_path / "out/shards").mkdir()
    (tmp_path / "out/shards/00000.parquet").touch()
    (tmp_path / "out/shards/.00001.parquet.host-1-0.writing").touch()
    (tmp_path / "out/shards/99999.parquet").touch()
    assert plan.missing() == [] and plan.finished() == {0}
