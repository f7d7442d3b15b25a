"""Files and folders appear whole or not at all, even with concurrent writers."""

import ctypes
import errno
import hashlib
import os
import sys
import threading
from pathlib import Path

import pytest

from cxr_tf import files
from cxr_tf.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_folder_appears_complete_and_leftovers_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".set.writing" / "images"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    with files.temporary_sibling(tmp_path / "set") as partial:
        assert names(partial) == [] and not (tmp_path / "set").exists()
        (partial / "whole").write_text("whole")
        os.rename(partial, tmp_path / "set")
    assert names(tmp_path) == ["set"] and names(tmp_path / "set") == ["whole"]


def test_interrupted_write_leaves_no_partial_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        files.temporary_sibling(tmp_path / "deep" / "set") as partial,
    ):
        (partial / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path / "deep") == []


def test_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no such locks here")
    folder, found = tmp_path / "set", []

    def second() -> None:
        with files.temporary_sibling(folder) as partial:
            found.append((folder.exists(), names(partial)))

    with files.temporary_sibling(folder) as partial:
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        assert found == []
        (partial / "whole").write_text("whole")
        os.rename(partial, folder)
    waiting.join(30)
    assert found == [(True, [])]
    assert names(tmp_path) == ["set"] and names(folder) == ["whole"]


def test_writers_without_locks_use_separate_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with (
        files.temporary_sibling(tmp_path / "set") as one,
        files.temporary_sibling(tmp_path / "set") as two,
    ):
        assert one != two
        (one / "1").write_text("one")
        assert names(two) == []
        os.rename(one, tmp_path / "set")
    assert names(tmp_path) == ["set"] and names(tmp_path / "set") == ["1"]


def test_exclusive_lock_of_a_held_folder_does_not_deadlock(tmp_path: Path) -> None:
    files.acquire_lock(tmp_path)
    with files.exclusive_lock(tmp_path):
        pass
    files.release_lock(tmp_path)
    assert files.identity(tmp_path) not in files.held_locks


def test_concurrent_writers_of_one_folder_do_not_fail(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(60):
                with files.temporary_sibling(tmp_path / "set") as partial:
                    (partial / "file").write_text("whole")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == [] and names(tmp_path) == []


@pytest.mark.parametrize("stem", ["image", "x" * 250, "図" * 80])
def test_short_stem_fits_into_file_names(tmp_path: Path, stem: str) -> None:
    made = tmp_path / f".00001-{files.short_stem(Path(stem + '.png'))}-gradcampp.png.writing"
    made.write_text("fits")
    assert files.short_stem(Path("image.png")) == "image"


def test_content_reaches_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    rename = os.replace
    monkeypatch.setattr(files.atomic, "sync", lambda path: calls.append(f"sync {path.name}"))
    monkeypatch.setattr(
        files.atomic.os, "replace", lambda a, b: (calls.append(f"rename {b.name}"), rename(a, b))
    )
    files.write_json(tmp_path / "metrics.json", {})
    assert calls == ["sync .metrics.json.writing", "rename metrics.json", f"sync {tmp_path.name}"]
    calls.clear()
    with files.temporary_sibling(tmp_path / "set") as partial:
        (partial / "image").write_text("whole")
        files.publish(partial, tmp_path / "set")
    assert calls == [
        *("sync .set.writing", "sync image"),
        *("rename set", f"sync {tmp_path.name}"),
    ]


@pytest.mark.parametrize("exchange", [True, False])
def test_replace_folder_leaves_only_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a system that cannot
    for content in ("old", "new"):
        with files.temporary_sibling(tmp_path / "maps") as partial:
            (partial / content).write_text(content)
            files.replace_folder(partial, tmp_path / "maps")
    assert names(tmp_path) == ["maps"] and names(tmp_path / "maps") == ["new"]


def test_folder_between_two_renames_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".maps.old").mkdir()
    (tmp_path / ".maps.old" / "old").touch()
    with files.temporary_sibling(tmp_path / "maps"):
        assert names(tmp_path / "maps") == ["old"]
    assert names(tmp_path) == ["maps"]


def test_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(partial: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_in_hdf5(partial: Path) -> None:
        raise OSError("Unable to write: error message = 'No space left on device'")

    for write in (full, full_in_hdf5):
        with pytest.raises(OSError, match=r"No space left on device: '.*model\.keras'"):
            files.write_atomically(tmp_path / "model.keras", write)
    with pytest.raises(ConnectionRefusedError) as caught, files.naming_file(tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert caught.value.filename is None  # not an error of the disk
    assert names(tmp_path) == []


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no such locks here")
    remains, in_use = tmp_path / ".models.config-a", tmp_path / ".models.config-b"
    remains.touch()
    in_use.touch()
    descriptor = files.lock(in_use, wait=True)
    files.replace_text(tmp_path / "models.config", "text")
    assert names(tmp_path) == [".models.config-b", "models.config"]
    os.close(descriptor)


def test_digest_of_files_equals_that_of_their_content(tmp_path: Path) -> None:
    for name, content in (("a", b"chest"), ("b", b" X-ray")):
        (tmp_path / name).write_bytes(content)
    digest = files.digest_files(tmp_path / "a", tmp_path / "b", algorithm="sha256")
    assert digest == hashlib.sha256(b"chest X-ray").hexdigest()
    assert len(files.digest_files(tmp_path / "a")) == 32


def test_error_names_the_missing_key_and_the_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"test": {"auroc": 0.5}, "history": [{"loss": "high"}]}')
    record = files.read_json(path, {"test": {"*": files.NUMBER}})
    assert record["test"]["auroc"] == 0.5 and record.get("val") is None
    with pytest.raises(UserError, match=r"metrics\.json is damaged \(it lacks 'f1'\)"):
        record["test"]["f1"]
    with pytest.raises(UserError, match="'history/loss' has the wrong type, str"):
        files.read_json(path, {"history": [{"loss": files.NUMBER}]})
