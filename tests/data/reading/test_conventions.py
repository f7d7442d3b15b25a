"""Folders and file names: finding, patient and split."""

import os
from pathlib import Path

import pytest
from catalogs import Write, count_rows, error_of

from cxr_tf.data.checks import describe
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.reading.conventions import patient_of


def test_kermany_file_names_give_cause_and_patient(tmp_path: Path, write: Write) -> None:
    for split in ("train", "test"):
        write(f"{split}/PNEUMONIA/person{len(split)}_bacteria_46.jpeg")
        write(f"{split}/PNEUMONIA/person{len(split)}_virus_15.jpeg")
        write(f"{split}/NORMAL/IM-{len(split)}115-0001.jpeg")
        write(f"{split}/NORMAL/IM-{len(split)}115-0002.jpeg")
        write(f"{split}/NORMAL/NORMAL2-IM-{len(split)}115-0001-0002.jpeg")
        write(f"{split}/PNEUMONIA/VIRUS-{len(split)}980-0001.jpeg")  # as version 3 names them
    (tmp_path / "train/NORMAL/._IM-0001.jpeg").write_bytes(b"of another system")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert count_rows(catalog) == {
        **{(s, "normal"): 3 for s in ("train", "test")},
        **{(s, "bacterial"): 1 for s in ("train", "test")},
        **{(s, "viral"): 2 for s in ("train", "test")},
    }
    of_test = {r.patient for r in catalog.radiographs if r.split == "test"}
    # The same number with another cause is another patient; two images of one are one.
    assert of_test == {
        "person4_bacteria",
        "person4_virus",
        "IM-4115",
        "NORMAL2-IM-4115",
        "4980_virus",
    }
    assert catalog.labels("binary").tolist() == [
        int(r.finding != "normal") for r in catalog.radiographs
    ]
    assert catalog.classes("three_class") == ("normal", "bacterial", "viral")


def test_folder_names_are_recognised_in_any_case_and_spelling(tmp_path: Path, write: Write) -> None:
    write("Training/normal/1.PNG")
    write("Training/Bacteria/1.png")
    write("VALIDATION/VIRUS/deeper/1.JPG")
    write("test/Viral/1.jpeg")
    write("masks/1.png")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert count_rows(catalog) == {
        ("train", "normal"): 1,
        ("train", "bacterial"): 1,
        ("val", "viral"): 1,
        ("test", "viral"): 1,
    }
    # These names do not identify patients: each image counts as one.
    assert len(set(catalog.patients)) == 4


def test_files_of_other_types_are_noted(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    (tmp_path / "NORMAL/2.tif").write_bytes(b"")
    assert "neither JPEG nor PNG: 1 .tif" in describe(open_catalog(str(tmp_path), resplit=False))


def test_images_in_unrecognised_folders_are_noted(tmp_path: Path, write: Write) -> None:
    write("one/NORMAL/1.png")
    write("one/PNEUMONIA/1.png")
    for name in ("COVID/1.png", "COVID/deep/2.png", "VIRAL PNEUMONIA/1.png", "masks/1.png"):
        write(f"one/{name}")
    message = describe(open_catalog(str(tmp_path / "one"), resplit=False))
    assert "not in a split or class folder: 2 in COVID, 1 in VIRAL PNEUMONIA\n" in message + "\n"
    write("two/train/NORMAL/1.png")
    write("two/extra/NORMAL/1.png")
    write("two/train/COVID/1.png")
    write("two/train/COVID/2.png")
    write("two/test/NORMAL/1.png")
    write("two/test/COVID/1.png")
    message = describe(open_catalog(str(tmp_path / "two"), resplit=False))
    assert "3 in COVID, 1 in extra" in message


def test_images_outside_class_folders_are_noted(tmp_path: Path, write: Write) -> None:
    for split in ("train", "test"):
        write(f"{split}/NORMAL/1.png")
        write(f"{split}/PNEUMONIA/2.png")
    write("train/loose.png")
    write("train/._loose.png")  # of another system
    write("forgotten.png")
    catalog = open_catalog(str(tmp_path))
    assert len(catalog) == 4
    assert f"1 in {tmp_path.name} itself, 1 in train itself" in " ".join(catalog.notes)


def test_nested_folders_give_the_cause_and_contradictions_raise(
    tmp_path: Path, write: Write
) -> None:
    for name in ("NORMAL/a/1.png", "PNEUMONIA/VIRUS/2.png", "pneumonia/Bacteria/3.png"):
        write(name)
    write("PNEUMONIA/4.png")
    catalog = open_catalog(str(tmp_path))
    found = {Path(r.path).stem: r.finding for r in catalog.radiographs}
    assert found == {"1": "normal", "2": "viral", "3": "bacterial", "4": "pneumonia"}
    slip = write("NORMAL/PNEUMONIA/5.png")
    message = error_of(lambda: open_catalog(str(tmp_path)))
    assert "5.png is in folders of both normal and pneumonia" in message
    slip.unlink()
    write("NORMAL/train/6.png")
    assert "put class folders inside split folders" in error_of(lambda: open_catalog(str(tmp_path)))


def test_linked_folders_are_read_once(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    elsewhere = write("disk/2.png").parent
    (tmp_path / "NORMAL" / "more").symlink_to(elsewhere)
    (tmp_path / "NORMAL" / "around").symlink_to(tmp_path / "NORMAL")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert [Path(path).name for path in catalog.paths] == ["1.png", "2.png"]


def test_broken_links_and_unreadable_folders_are_errors(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("NORMAL/1.png")
    link = tmp_path / "NORMAL" / "2.png"
    link.symlink_to(tmp_path / "unmounted" / "2.png")
    assert "2.png: a broken link" in error_of(lambda: open_catalog(str(tmp_path)))
    link.unlink()
    shut = write("NORMAL/patient/3.png").parent
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "patient: Permission denied" in error_of(lambda: open_catalog(str(tmp_path)))


def test_equal_names_in_two_viewer_folders_are_two_patients(tmp_path: Path, write: Write) -> None:
    for number in (7, 8):
        write(f"NORMAL/patient{number}/IM-0001-0001.png")
        write(f"NORMAL/patient{number}/IM-0001-0002.png")
    write("NORMAL/IM-0001-0001.png")
    assert sorted(set(open_catalog(str(tmp_path), resplit=False).patients)) == [
        "IM-0001",
        "patient7/IM-0001",
        "patient8/IM-0001",
    ]
    # The folders around the classes have no effect: a list of the same files has the same patients.
    above = tmp_path.parent
    assert patient_of(tmp_path / "NORMAL/IM-0001-0001.png", above) == "IM-0001"


def test_mask_folders_are_left_out(tmp_path: Path, write: Write) -> None:
    for name in ("Normal", "Viral Pneumonia"):
        for k in range(3):
            write(f"{name}/images/{k}.png")
            write(f"{name}/masks/{k}.png")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert len(catalog) == 3 and not any("masks" in path for path in catalog.paths)
    notes = " ".join(catalog.notes)
    assert "in mask folders: 3 in Normal/masks" in notes
    assert "read from sub-folders: 3 in Normal/images" in notes


def test_class_folders_of_any_name_can_be_labels(tmp_path: Path, write: Write) -> None:
    for split in ("train", "val", "test"):
        for name in ("COVID", "Normal", "0"):
            write(f"{split}/{name}/images/{split}.png")
            write(f"{split}/{name}/masks/{split}.png")
    catalog = open_catalog(str(tmp_path), task="labels", resplit=False)
    assert len(catalog) == 9
    assert set(catalog.classes("labels")) == {"COVID", "Normal", "0"}
    # The usual names keep their meaning.
    write("usual/NORMAL/1.png")
    write("usual/VIRUS/1.png")
    usual = open_catalog(str(tmp_path / "usual"), task="labels", resplit=False)
    assert usual.classes("labels") == ("normal", "viral")
    write("other/0/1.png")
    write("other/1/1.png")
    message = error_of(lambda: open_catalog(str(tmp_path / "other")))
    assert "found 0, 1; to use other names as labels, pass --task labels" in message
