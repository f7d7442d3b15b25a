"""Checks that stop a run, and the description of a catalogue."""

from pathlib import Path

import pytest
from catalogs import Write, error_of, write_list

from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.checks import check, describe, split_warnings
from cxr_tf.data.loading import open_catalog


def test_leakage_is_an_error_unless_allowed(tmp_path: Path, write: Write) -> None:
    for split in data_catalog.SPLITS:
        for number in range(60):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    clean = open_catalog(str(tmp_path))
    check(clean, task="binary")
    write("train/PNEUMONIA/person7_virus_1.jpeg")
    write("test/PNEUMONIA/person7_virus_2.jpeg")
    one_patient = open_catalog(str(tmp_path))
    message = error_of(lambda: check(one_patient, task="binary"))
    assert "person7_virus appears in 2 splits" in message
    assert "--allow-leakage" in message
    check(one_patient, task="binary", allow_leakage=True)
    (tmp_path / "test/PNEUMONIA/person7_virus_2.jpeg").unlink()
    write("train/NORMAL/a.png", like=9)
    write("test/NORMAL/b.png", like=9)
    same_bytes = open_catalog(str(tmp_path))
    message = error_of(lambda: check(same_bytes, task="binary"))
    assert "identical image" in message
    assert "NORMAL/a.png" in message


def test_identical_images_under_two_labels_are_noted(tmp_path: Path, write: Write) -> None:
    write("NORMAL/a.png", like=1)
    write("PNEUMONIA/a.png", like=1)
    write("PNEUMONIA/b.png", like=2)
    write("BACTERIAL/b.png", like=2)  # no contradiction
    message = describe(open_catalog(str(tmp_path), resplit=False))
    assert "2 images are byte-identical copies" in message
    assert "1 image appears under two labels" in message


def test_three_class_needs_bacterial_and_viral_labels(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"NORMAL/{number}.png")
        write(f"PNEUMONIA/{number}.png")
    catalog = open_catalog(str(tmp_path))
    check(catalog, task="binary")
    assert "the task binary needs neither" in error_of(lambda: check(catalog, task="three_class"))


def test_an_empty_class_is_an_error(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"PNEUMONIA/{number}.png")
    (tmp_path / "NORMAL").mkdir()
    message = error_of(lambda: check(open_catalog(str(tmp_path)), task="binary"))
    assert "no 'normal' image in the train split" in message


@pytest.mark.parametrize("label", ["patient", "label", "path", "predicted"])
def test_reserved_column_names_cannot_be_labels(tmp_path: Path, write: Write, label: str) -> None:
    for k in range(40):
        write(f"{k}.png")
    text = "path,label\n" + "".join(f"{k}.png,{(label, 'control')[k % 2]}\n" for k in range(40))
    catalog = open_catalog(write_list(tmp_path, text), task="labels")
    assert f"cannot be called '{label}'" in error_of(lambda: check(catalog, task="labels"))


def test_the_number_of_labels_is_limited(tmp_path: Path, write: Write) -> None:
    for number in range(40):
        write(f"{number}.png")
    one = "path,label\n" + "".join(f"{n}.png,x\n" for n in range(40))
    many = "path,label\n" + "".join(f"{n}.png,{n}\n" for n in range(40))
    for text, count in ((one, 1), (many, 40)):
        catalog = open_catalog(write_list(tmp_path, text))
        message = error_of(lambda c=catalog: check(c, task="labels"))  # type: ignore[misc]
        assert f"has {count} {'label' if count == 1 else 'different labels'} (" in message


def test_one_file_under_two_labels_is_an_error(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"NORMAL/{number}.png")
        write(f"PNEUMONIA/{number}.png")
    write("NORMAL/a.png", like=1)
    write("PNEUMONIA/b.png", like=1)
    catalog = open_catalog(str(tmp_path))
    message = error_of(lambda: check(catalog, task="binary", allow_leakage=True))
    assert "a.png (normal) and" in message and "identical files under two labels" in message


def test_the_error_about_an_empty_split_gives_the_cause(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"PNEUMONIA/{number}.png")
        write(f"NORMAL/IM-0001-{number:04d}.png")
    message = error_of(lambda: check(open_catalog(str(tmp_path)), task="binary"))
    assert "All 'normal' images (9) are of 1 patient (IM-0001)" in message


def test_permitted_leakage_and_small_classes_give_warnings(tmp_path: Path, write: Write) -> None:
    for split in data_catalog.SPLITS:
        for number in range(60 if split != "test" else 12):
            write(f"{split}/NORMAL/{split}{number}.png")
        for number in range(60 if split != "test" else 1):
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    write("train/NORMAL/a.png", like=9)
    write("test/NORMAL/b.png", like=9)
    catalog = open_catalog(str(tmp_path))
    lines = split_warnings(catalog, catalog.labels("binary"), catalog.classes("binary"))
    assert len(lines) == 2
    assert lines[0].startswith("leakage: 1 patient or identical image is in")
    assert lines[1].startswith("the test split has only 1 'pneumonia' image:")
