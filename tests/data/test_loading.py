"""Loading of a catalogue from folders and lists."""

import os
import shutil
from pathlib import Path

from catalogs import Write, error_of, write_list

from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.loading import open_catalog


def test_paths_that_are_not_data_sets_are_explained(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "chest_xray"
    write("chest_xray/inner/train/NORMAL/1.png")
    write("text.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dicom/NORMAL").mkdir(parents=True)
    (tmp_path / "dicom/NORMAL/1.dcm").write_bytes(b"")
    assert "did you mean" in error_of(lambda: open_catalog(str(tmp_path / "chest-xray")))
    assert str(folder / "inner") in error_of(lambda: open_catalog(str(folder)))
    assert "neither a folder nor a .csv" in error_of(
        lambda: open_catalog(str(tmp_path / "text.txt"))
    )
    assert "no class folder" in error_of(lambda: open_catalog(str(tmp_path / "empty")))
    assert "--source dicom" in error_of(lambda: open_catalog(str(tmp_path / "dicom")))
    write("chest_xray/inner/NORMAL/1.png")
    assert "keep one layout" in error_of(lambda: open_catalog(str(folder / "inner")))


def test_a_file_name_that_is_not_utf8_is_an_error(tmp_path: Path, write: Write) -> None:
    image = write("NORMAL/1.png")
    os.rename(image, os.fsencode(image.parent) + b"/R\xf6ntgen.png")
    assert "not valid UTF-8" in error_of(lambda: open_catalog(str(tmp_path)))


def test_the_fingerprint_depends_on_content_not_on_location(tmp_path: Path, write: Write) -> None:
    for number in range(12):
        write(f"here/NORMAL/{number}.png")
        write(f"here/PNEUMONIA/{number}.png")
    before = open_catalog(str(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = open_catalog(str(tmp_path / "there"))
    assert before.fingerprint() == after.fingerprint()
    write("there/NORMAL/3.png")
    assert open_catalog(str(tmp_path / "there")).fingerprint() != before.fingerprint()


def test_custom_labels_are_preserved_as_written(tmp_path: Path, write: Write) -> None:
    for number in range(12):
        write(f"person{number}_virus_1.png" if number % 2 else f"{number}.png")
    rows = [
        f"{f'person{n}_virus_1' if n % 2 else n}.png,{'Sick' if n % 2 else 'Healthy'}"
        for n in range(12)
    ]
    source = write_list(tmp_path, "\n".join(["path,label", *rows]))
    assert open_catalog(source, task="labels").classes("labels") == ("Healthy", "Sick")
    turned = open_catalog(source, task="labels", positive="Healthy")
    assert turned.classes("labels") == ("Sick", "Healthy")
    # The named tasks interpret the labels, and the cause in the file names.
    assert open_catalog(source, task="three_class").findings == ("normal", "viral")


def test_the_positive_label_becomes_the_second_class(tmp_path: Path, write: Write) -> None:
    for number in range(12):
        write(f"{number}.png")
    rows = [f"{n}.png,{'device' if n % 2 else 'no device'}" for n in range(12)]
    source = write_list(tmp_path, "\n".join(["path,label", *rows]))
    assert open_catalog(source).classes("labels") == ("device", "no device")
    turned = open_catalog(source, positive="device")
    assert turned.classes("labels") == ("no device", "device")
    assert turned.labels("labels").tolist() == [0, 1] * 6
    message = error_of(lambda: open_catalog(source, positive="Device"))
    assert "no device, device" in message or "device, no device" in message


def test_a_list_with_standard_labels_supports_the_named_tasks(tmp_path: Path, write: Write) -> None:
    for number in range(6):
        write(f"{number}.png")
    text = "\ufeffPath;Label;Split\r\n" + "".join(
        f"{n}.png;{('Normal', 'BACTERIA')[n % 2]};{('training', 'val', 'TEST')[n // 2]}\r\n"
        for n in range(6)
    )
    catalog = open_catalog(write_list(tmp_path, text), resplit=False)
    assert catalog.labels("three_class").tolist() == [0, 1] * 3
    assert [r.split for r in catalog.radiographs] == [s for s in data_catalog.SPLITS for _ in "ab"]
