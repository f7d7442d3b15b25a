"""Files and folders appear whole or not at all, with concurrent writers too."""

import os
import threading
from pathlib import Path

import pytest

from cxr_tf import files


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_folder_appears_whole_and_remains_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".set.writing" / "images"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    with files.temporary_sibling(tmp_path / "set") as partial:
        assert names(partial) == [] and not (tmp_path / "set").exists()
        (partial / "whole").write_text("whole")
        os.rename(partial, tmp_path / "set")
    assert names(tmp_path) == ["set"] and names(tmp_path / "set") == ["whole"]


def test_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
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
    monkeypatch.setattr(files, "lock", lambda *_, **__: None)
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


def test_concurrent_writers_of_one_folder(tmp_path: Path) -> None:
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
