"""The catalogue: what it reads out of folders and lists, how it splits, and what it refuses."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.catalog import Catalog
from cxr_tf.data.checks import check, describe
from cxr_tf.data.conventions import patient_of
from cxr_tf.data.lists import read_list
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.splits import leakage
from cxr_tf.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an image that is like no other (or is image `like`) below the test's folder."""
    count = iter(range(1, 10**6))

    def image(name: str, like: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = like or next(count) + 10**6
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
        return path

    return image


def counted(catalog: Catalog) -> dict[tuple[str, str], int]:
    table: dict[tuple[str, str], int] = {}
    for r in catalog.radiographs:
        table[r.split, r.finding] = table.get((r.split, r.finding), 0) + 1
    return table


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


# ---------------------------------------------------------------------- folders


def test_kermanys_names_tell_cause_and_patient(tmp_path: Path, write: Write) -> None:
    for split in ("train", "test"):
        write(f"{split}/PNEUMONIA/person{len(split)}_bacteria_46.jpeg")
        write(f"{split}/PNEUMONIA/person{len(split)}_virus_15.jpeg")
        write(f"{split}/NORMAL/IM-{len(split)}115-0001.jpeg")
        write(f"{split}/NORMAL/IM-{len(split)}115-0002.jpeg")
        write(f"{split}/NORMAL/NORMAL2-IM-{len(split)}115-0001-0002.jpeg")
        write(f"{split}/PNEUMONIA/VIRUS-{len(split)}980-0001.jpeg")  # as version 3 names them
    (tmp_path / "train/NORMAL/._IM-0001.jpeg").write_bytes(b"of another system")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert counted(catalog) == {
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


def test_names_of_folders_in_any_case_and_spelling(tmp_path: Path, write: Write) -> None:
    write("Training/normal/1.PNG")
    write("Training/Bacteria/1.png")
    write("VALIDATION/VIRUS/deeper/1.JPG")
    write("test/Viral/1.jpeg")
    write("masks/1.png")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert counted(catalog) == {
        ("train", "normal"): 1,
        ("train", "bacterial"): 1,
        ("val", "viral"): 1,
        ("test", "viral"): 1,
    }
    # Nothing in these names tells the patient: each image is one.
    assert len(set(catalog.patients)) == 4


def test_split_by_patient_is_stratified_and_repeats(tmp_path: Path, write: Write) -> None:
    for patient in range(60):
        finding = ("bacteria", "virus")[patient % 2]
        for image in range(1 + patient % 3):
            write(f"PNEUMONIA/person{patient}_{finding}_{image}.jpeg")
        write(f"NORMAL/IM-{patient:04d}-0001.jpeg")
    # Radiographs under two patients' names: both patients belong together.
    for pair in range(12):
        write(f"NORMAL/IM-1{pair:03d}-0001.jpeg", like=5 + pair)
        write(f"NORMAL/IM-2{pair:03d}-0001.jpeg", like=5 + pair)
    first, again, other = (open_catalog(str(tmp_path), seed=s) for s in (3, 3, 4))
    assert first == again
    assert [r.split for r in first.radiographs] != [r.split for r in other.radiographs]
    assert not leakage(first)
    counts = counted(first)
    for finding in ("normal", "bacterial", "viral"):
        total = sum(counts[s, finding] for s in data_catalog.SPLITS)
        assert counts["train", finding] == pytest.approx(0.70 * total, abs=3)
        assert counts["test", finding] == pytest.approx(0.15 * total, abs=3)
    assert "split by patient 70/15/15 from seed 3" in describe(first)
    assert "do not tell their patient" not in describe(first)
    write("NORMAL/ward 7.png")
    assert "1 images do not tell their patient" in describe(open_catalog(str(tmp_path)))


@pytest.mark.parametrize("patients", [3, 4, 7])
def test_small_sets_leave_no_split_without_a_finding(
    tmp_path: Path, write: Write, patients: int
) -> None:
    for number in range(patients):
        write(f"NORMAL/{number}.png")
        write(f"PNEUMONIA/{number}.png")
    for seed in range(5):
        check(open_catalog(str(tmp_path), seed=seed), task="binary")


def test_published_val_of_16_is_pooled_and_test_left_alone(tmp_path: Path, write: Write) -> None:
    for split, count in (("train", 300), ("val", 8), ("test", 40)):
        for number in range(count):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    given = open_catalog(str(tmp_path), resplit=False)
    settled = open_catalog(str(tmp_path))
    assert counted(given)["val", "normal"] == 8
    assert "val has only 16 images: train and val pooled" in describe(settled)
    before, after = ({r.path: r.split for r in c.radiographs} for c in (given, settled))
    assert {p for p, s in before.items() if s == "test"} == {
        p for p, s in after.items() if s == "test"
    }
    assert 50 < counted(settled)["val", "normal"] < 58  # 15 of 85 parts of 308
    check(settled, task="binary")


def test_val_without_a_class_is_pooled_too(tmp_path: Path, write: Write) -> None:
    for number in range(110):
        write(f"train/NORMAL/t{number}.png")
        write(f"train/PNEUMONIA/t{number}.png")
        write(f"val/NORMAL/v{number}.png")
    write("test/NORMAL/1.png")
    write("test/PNEUMONIA/1.png")
    catalog = open_catalog(str(tmp_path))
    assert "val has no pneumonia image" in describe(catalog)
    check(catalog, task="binary")


def test_a_good_val_is_kept(tmp_path: Path, write: Write) -> None:
    for split, count in (("train", 60), ("val", 50), ("test", 10)):
        for number in range(count):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    assert open_catalog(str(tmp_path)) == open_catalog(str(tmp_path), resplit=False)


def test_leakage_stops_unless_allowed(tmp_path: Path, write: Write) -> None:
    for split in data_catalog.SPLITS:
        for number in range(60):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    clean = open_catalog(str(tmp_path))
    check(clean, task="binary")
    write("train/PNEUMONIA/person7_virus_1.jpeg")
    write("test/PNEUMONIA/person7_virus_2.jpeg")
    one_patient = open_catalog(str(tmp_path))
    said = refusal(lambda: check(one_patient, task="binary"))
    assert "person7_virus stands in 2 splits" in said
    assert "--allow-leakage" in said
    check(one_patient, task="binary", allow_leakage=True)
    (tmp_path / "test/PNEUMONIA/person7_virus_2.jpeg").unlink()
    write("train/NORMAL/a.png", like=9)
    write("test/NORMAL/b.png", like=9)
    same_bytes = open_catalog(str(tmp_path))
    said = refusal(lambda: check(same_bytes, task="binary"))
    assert "identical image" in said
    assert "NORMAL/a.png" in said


def test_identical_images_under_two_labels_are_told(tmp_path: Path, write: Write) -> None:
    write("NORMAL/a.png", like=1)
    write("PNEUMONIA/a.png", like=1)
    write("PNEUMONIA/b.png", like=2)
    write("BACTERIAL/b.png", like=2)  # no contradiction
    said = describe(open_catalog(str(tmp_path), resplit=False))
    assert "2 images are byte-identical copies" in said
    assert "1 images stand under two labels" in said


def test_three_classes_need_the_cause(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"NORMAL/{number}.png")
        write(f"PNEUMONIA/{number}.png")
    catalog = open_catalog(str(tmp_path))
    check(catalog, task="binary")
    assert "the task binary needs neither" in refusal(lambda: check(catalog, task="three_class"))


def test_an_empty_class_stops(tmp_path: Path, write: Write) -> None:
    for number in range(9):
        write(f"PNEUMONIA/{number}.png")
    (tmp_path / "NORMAL").mkdir()
    said = refusal(lambda: check(open_catalog(str(tmp_path)), task="binary"))
    assert "no 'normal' image in the train split" in said


def test_what_is_no_data_set(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "chest_xray"
    write("chest_xray/inner/train/NORMAL/1.png")
    write("text.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dicom/NORMAL").mkdir(parents=True)
    (tmp_path / "dicom/NORMAL/1.dcm").write_bytes(b"")
    assert "did you mean" in refusal(lambda: open_catalog(str(tmp_path / "chest-xray")))
    assert str(folder / "inner") in refusal(lambda: open_catalog(str(folder)))
    assert "nor a .csv" in refusal(lambda: open_catalog(str(tmp_path / "text.txt")))
    assert "no class folder" in refusal(lambda: open_catalog(str(tmp_path / "empty")))
    assert "--source dicom" in refusal(lambda: open_catalog(str(tmp_path / "dicom")))
    write("chest_xray/inner/NORMAL/1.png")
    assert "keep one layout" in refusal(lambda: open_catalog(str(folder / "inner")))


def test_files_of_other_kinds_are_told(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    (tmp_path / "NORMAL/2.tif").write_bytes(b"")
    assert "neither JPEG nor PNG: 1 .tif" in describe(open_catalog(str(tmp_path), resplit=False))


def test_images_beside_the_known_folders_are_told(tmp_path: Path, write: Write) -> None:
    write("one/NORMAL/1.png")
    write("one/PNEUMONIA/1.png")
    for name in ("COVID/1.png", "COVID/deep/2.png", "VIRAL PNEUMONIA/1.png", "masks/1.png"):
        write(f"one/{name}")
    said = describe(open_catalog(str(tmp_path / "one"), resplit=False))
    assert "no folder of a split or a class: 2 in COVID, 1 in VIRAL PNEUMONIA\n" in said + "\n"
    write("two/train/NORMAL/1.png")
    write("two/extra/NORMAL/1.png")
    write("two/train/COVID/1.png")
    write("two/train/COVID/2.png")
    write("two/test/NORMAL/1.png")
    write("two/test/COVID/1.png")
    said = describe(open_catalog(str(tmp_path / "two"), resplit=False))
    assert "3 in COVID, 1 in extra" in said


def test_images_that_lie_loose_are_told(tmp_path: Path, write: Write) -> None:
    for split in ("train", "test"):
        write(f"{split}/NORMAL/1.png")
        write(f"{split}/PNEUMONIA/2.png")
    write("train/loose.png")
    write("train/._loose.png")  # of another system
    write("forgotten.png")
    catalog = open_catalog(str(tmp_path))
    assert len(catalog) == 4
    assert f"1 in {tmp_path.name} itself, 1 in train itself" in " ".join(catalog.notes)


def test_folders_in_folders_tell_the_cause_or_contradict(tmp_path: Path, write: Write) -> None:
    for name in ("NORMAL/a/1.png", "PNEUMONIA/VIRUS/2.png", "pneumonia/Bacteria/3.png"):
        write(name)
    write("PNEUMONIA/4.png")
    catalog = open_catalog(str(tmp_path))
    found = {Path(r.path).stem: r.finding for r in catalog.radiographs}
    assert found == {"1": "normal", "2": "viral", "3": "bacterial", "4": "pneumonia"}
    slip = write("NORMAL/PNEUMONIA/5.png")
    said = refusal(lambda: open_catalog(str(tmp_path)))
    assert "5.png lies in folders of normal and pneumonia" in said
    slip.unlink()
    write("NORMAL/train/6.png")
    assert "put the splits outside" in refusal(lambda: open_catalog(str(tmp_path)))


def test_linked_folders_are_read_once(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    elsewhere = write("disk/2.png").parent
    (tmp_path / "NORMAL" / "more").symlink_to(elsewhere)
    (tmp_path / "NORMAL" / "around").symlink_to(tmp_path / "NORMAL")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert [Path(path).name for path in catalog.paths] == ["1.png", "2.png"]


def test_what_cannot_be_reached_is_not_left_out_in_silence(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("NORMAL/1.png")
    link = tmp_path / "NORMAL" / "2.png"
    link.symlink_to(tmp_path / "unmounted" / "2.png")
    assert "2.png: a link that leads nowhere" in refusal(lambda: open_catalog(str(tmp_path)))
    link.unlink()
    shut = write("NORMAL/patient/3.png").parent
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "patient: Permission denied" in refusal(lambda: open_catalog(str(tmp_path)))


def test_what_viewers_name_alike_is_told_apart_by_the_folder(tmp_path: Path, write: Write) -> None:
    for number in (7, 8):
        write(f"NORMAL/patient{number}/IM-0001-0001.png")
        write(f"NORMAL/patient{number}/IM-0001-0002.png")
    write("NORMAL/IM-0001-0001.png")
    assert sorted(set(open_catalog(str(tmp_path), resplit=False).patients)) == [
        "IM-0001",
        "patient7/IM-0001",
        "patient8/IM-0001",
    ]
    # The folders around the classes tell nothing: a list of the same files has the same patients.
    above = tmp_path.parent
    assert patient_of(tmp_path / "NORMAL/IM-0001-0001.png", above) == "IM-0001"


def test_a_name_that_is_no_utf8_is_one_clear_line(tmp_path: Path, write: Write) -> None:
    image = write("NORMAL/1.png")
    os.rename(image, os.fsencode(image.parent) + b"/R\xf6ntgen.png")
    assert "not UTF-8" in refusal(lambda: open_catalog(str(tmp_path)))


def test_a_moved_folder_is_the_same_data_and_a_changed_one_is_not(
    tmp_path: Path, write: Write
) -> None:
    for number in range(12):
        write(f"here/NORMAL/{number}.png")
        write(f"here/PNEUMONIA/{number}.png")
    before = open_catalog(str(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = open_catalog(str(tmp_path / "there"))
    assert before.fingerprint() == after.fingerprint()
    write("there/NORMAL/3.png")
    assert open_catalog(str(tmp_path / "there")).fingerprint() != before.fingerprint()


# ---------------------------------------------------------------------- lists


def listing(tmp_path: Path, text: str) -> str:
    path = tmp_path / "catalogue.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_list_with_labels_of_its_own(tmp_path: Path, write: Write) -> None:
    lines = ["path,label,patient,note"]
    for number in range(60):
        write(f"images/{number}.png")
        lines.append(
            f"images/{number}.png,{('nodule', 'effusion', 'normal')[number % 3]},p{number // 6},x"
        )
    source = listing(tmp_path, "\n".join(lines))
    catalog = open_catalog(source)
    assert catalog.classes("labels") == ("normal", "effusion", "nodule")
    assert len(set(catalog.patients)) == 10
    check(catalog, task="labels")
    assert not leakage(catalog)
    assert [catalog.findings[k] for k in catalog.labels("labels")] == [
        r.finding for r in catalog.radiographs
    ]
    # A part of it keeps the classes, whatever it holds.
    assert catalog.take([1]).labels("labels").tolist() == [1]
    # Scoring a model that knows its classes in another order.
    assert catalog.take([1]).labels("labels", ("nodule", "effusion", "normal")).tolist() == [1]
    said = refusal(lambda: catalog.labels("labels", ("normal", "nodule")))
    assert "'effusion'" in said
    assert "--task labels" in refusal(lambda: catalog.labels("binary"))


def test_a_list_from_a_spreadsheet(tmp_path: Path, write: Write) -> None:
    for name in ("1.png", "2.png"):
        write(name)
    rows = "1.png;normal;train\n2.png;viral;test\n"
    plain = read_list(Path(listing(tmp_path, "path;label;split\n" + rows)))
    marked = read_list(Path(listing(tmp_path, "sep=;\npath;label;split\n" + rows)))
    assert [(r.path.name, r.label, r.split) for r in plain] == [
        ("1.png", "normal", "train"),
        ("2.png", "viral", "test"),
    ]
    for number, (row, same) in enumerate(zip(plain, marked, strict=True), 2):
        assert row.where.endswith(f"line {number}") and same.where.endswith(f"line {number + 1}")
        assert replace(row, where="") == replace(same, where="")
    twice = listing(tmp_path, "path;label;label\n" + rows)
    assert "more than one column label" in refusal(lambda: read_list(Path(twice)))


def test_one_strange_label_is_the_only_one_named(tmp_path: Path, write: Write) -> None:
    names = ("NORMAL", "Bacteria", "COVID", "PNEUMONIA")
    for name in names:
        write(f"{name}.png")
    source = listing(tmp_path, "\n".join(["path,label", *(f"{n}.png,{n}" for n in names)]))
    catalog = open_catalog(source, resplit=False)
    told = refusal(lambda: catalog.labels("binary"))
    assert "label 'COVID' is none of the classes normal, pneumonia" in told


def test_labels_of_ones_own_stay_as_they_are_written(tmp_path: Path, write: Write) -> None:
    for number in range(12):
        write(f"person{number}_virus_1.png" if number % 2 else f"{number}.png")
    rows = [
        f"{f'person{n}_virus_1' if n % 2 else n}.png,{'Sick' if n % 2 else 'Healthy'}"
        for n in range(12)
    ]
    source = listing(tmp_path, "\n".join(["path,label", *rows]))
    assert open_catalog(source, task="labels").classes("labels") == ("Healthy", "Sick")
    turned = open_catalog(source, task="labels", positive="Healthy")
    assert turned.classes("labels") == ("Sick", "Healthy")
    # The named tasks know what the words mean, and what the files' names tell of the cause.
    assert open_catalog(source, task="three_class").findings == ("normal", "viral")


@pytest.mark.parametrize("label", ["patient", "label", "path", "predicted"])
def test_a_label_is_not_called_like_a_column(tmp_path: Path, write: Write, label: str) -> None:
    for k in range(40):
        write(f"{k}.png")
    text = "path,label\n" + "".join(f"{k}.png,{(label, 'control')[k % 2]}\n" for k in range(40))
    catalog = open_catalog(listing(tmp_path, text), task="labels")
    assert f"cannot be called '{label}'" in refusal(lambda: check(catalog, task="labels"))


def test_positive_is_the_second_of_two(tmp_path: Path, write: Write) -> None:
    for number in range(12):
        write(f"{number}.png")
    rows = [f"{n}.png,{'device' if n % 2 else 'no device'}" for n in range(12)]
    source = listing(tmp_path, "\n".join(["path,label", *rows]))
    assert open_catalog(source).classes("labels") == ("device", "no device")
    turned = open_catalog(source, positive="device")
    assert turned.classes("labels") == ("no device", "device")
    assert turned.labels("labels").tolist() == [0, 1] * 6
    said = refusal(lambda: open_catalog(source, positive="Device"))
    assert "no device, device" in said or "device, no device" in said


def test_a_list_in_the_words_of_the_folders_serves_the_named_tasks(
    tmp_path: Path, write: Write
) -> None:
    for number in range(6):
        write(f"{number}.png")
    text = "\ufeffPath;Label;Split\r\n" + "".join(
        f"{n}.png;{('Normal', 'BACTERIA')[n % 2]};{('training', 'val', 'TEST')[n // 2]}\r\n"
        for n in range(6)
    )
    catalog = open_catalog(listing(tmp_path, text), resplit=False)
    assert catalog.labels("three_class").tolist() == [0, 1] * 3
    assert [r.split for r in catalog.radiographs] == [s for s in data_catalog.SPLITS for _ in "ab"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column label and path"),
        ("file,label\na.png,x\n", "no column path; its first line names file, label"),
        ("path,label\n", "lists no image"),
        ("path,label\na.png,x\n,x\n", "line 3: no path"),
        ("path,label\na.png,\n", "line 2: no label"),
        ("path,label\na.png\n", "line 2: no label"),
        ("path,label\nb.png,x\n", "line 2: no such file"),
        ("path,label\na.png,x\na.png,y\n", "line 3: a.png stands in line 2 already"),
        ("path,label,split\na.png,x,holdout\n", "split is 'holdout'"),
        ("path,label\ncatalogue.csv,x\n", "neither .jpeg, .jpg nor .png"),
    ],
)
def test_a_list_that_cannot_be_read_names_the_line(
    tmp_path: Path, write: Write, text: str, said: str
) -> None:
    write("a.png")
    assert said in refusal(lambda: open_catalog(listing(tmp_path, text)))


def test_a_list_of_bytes_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe\x00,x")
    assert "in UTF-8" in refusal(lambda: open_catalog(str(tmp_path / "a.csv")))


def test_one_label_or_a_hundred_cannot_be_learnt(tmp_path: Path, write: Write) -> None:
    for number in range(40):
        write(f"{number}.png")
    one = "path,label\n" + "".join(f"{n}.png,x\n" for n in range(40))
    many = "path,label\n" + "".join(f"{n}.png,{n}\n" for n in range(40))
    for text, count in ((one, 1), (many, 40)):
        catalog = open_catalog(listing(tmp_path, text))
        said = refusal(lambda c=catalog: check(c, task="labels"))  # type: ignore[misc]
        assert f"has {count} different labels" in said


def test_an_unknown_task_is_refused(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert "binary, three_class, labels" in refusal(lambda: catalog.labels("ternary"))
