"""CSV lists of radiographs."""

from dataclasses import replace
from pathlib import Path

import pytest
from catalogs import Write, error_of, write_list

from cxr_tf.data.checks import check
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.reading.lists import read_list
from cxr_tf.data.splits import leakage


def test_a_list_with_custom_labels_is_read(tmp_path: Path, write: Write) -> None:
    lines = ["path,label,patient,note"]
    for number in range(60):
        write(f"images/{number}.png")
        lines.append(
            f"images/{number}.png,{('nodule', 'effusion', 'normal')[number % 3]},p{number // 6},x"
        )
    source = write_list(tmp_path, "\n".join(lines))
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
    message = error_of(lambda: catalog.labels("labels", ("normal", "nodule")))
    assert "'effusion'" in message
    assert "--task labels" in error_of(lambda: catalog.labels("binary"))


def test_a_list_from_a_spreadsheet_is_read(tmp_path: Path, write: Write) -> None:
    for name in ("1.png", "2.png"):
        write(name)
    rows = "1.png;normal;train\n2.png;viral;test\n"
    plain, _ = read_list(Path(write_list(tmp_path, "path;label;split\n" + rows)))
    marked, _ = read_list(Path(write_list(tmp_path, "sep=;\npath;label;split\n" + rows)))
    assert [(r.path.name, r.label, r.split) for r in plain] == [
        ("1.png", "normal", "train"),
        ("2.png", "viral", "test"),
    ]
    for number, (row, same) in enumerate(zip(plain, marked, strict=True), 2):
        assert row.where.endswith(f"line {number}") and same.where.endswith(f"line {number + 1}")
        assert replace(row, where="") == replace(same, where="")
    twice = write_list(tmp_path, "path;label;label\n" + rows)
    assert "more than one column label" in error_of(lambda: read_list(Path(twice)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column label and path"),
        ("file,label\na.png,x\n", "no column path; its first line is file, label"),
        ("path,label\n", "lists no image"),
        ("path,label\na.png,x\n,x\n", "line 3: no path"),
        ("path,label\na.png,\n", "line 2: no label"),
        ("path,label\na.png\n", "line 2: no label"),
        ("path,label\nb.png,x\n", "line 2: no such file"),
        ("path,label\na.png,x\na.png,y\n", "line 3: a.png is already listed on line 2"),
        ("path,label,split\na.png,x,holdout\n", "split is 'holdout'"),
        ("path,label,split\na.png,x,\nb.png,x,test\n", "line 2: no split, although other lines"),
        ("path,label\ncatalogue.csv,x\n", "catalogue.csv is not a .jpeg, .jpg or .png file"),
    ],
)
def test_list_errors_name_the_line(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write("a.png")
    assert message in error_of(lambda: open_catalog(write_list(tmp_path, text)))


def test_a_binary_file_is_not_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe\x00,x")
    assert "in UTF-8" in error_of(lambda: open_catalog(str(tmp_path / "a.csv")))
    (tmp_path / "a.csv").write_text(f"path,label\n{200_000 * 'x'},y\n")
    message = error_of(lambda: open_catalog(str(tmp_path / "a.csv")))
    assert "cannot be read as a .csv list: field larger" in message


def rows_and_notes(tmp_path: Path, text: str, task: str = "labels") -> tuple[list, str]:
    catalog = open_catalog(write_list(tmp_path, text), task=task, resplit=False)
    return list(catalog.radiographs), "\n".join(catalog.notes)


def test_usual_spellings_of_patient_and_split_are_read(tmp_path: Path, write: Write) -> None:
    for k in range(4):
        write(f"{k}.png")
    lines = [f"{k}.png,{'ab'[k % 2]},p{k // 2},{('train', 'test')[k // 2]},31" for k in range(4)]
    for header in ("Path,Label,Patient ID,Set,Height", "path,label,PatientID,fold,Height"):
        rows, notes = rows_and_notes(tmp_path, "\n".join([header, *lines]))
        assert [r.patient for r in rows] == ["p0", "p0", "p1", "p1"]
        assert [r.split for r in rows] == ["train", "train", "test", "test"]
        assert "columns ignored: Height" in notes
    # A column of this name without splits is not read as the split.
    text = "path,label,dataset\n" + "".join(f"{k}.png,a,NIH\n" for k in range(4))
    rows, notes = rows_and_notes(tmp_path, text)
    assert not any(r.split for r in rows) and "columns ignored: dataset" in notes


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("case_number", "12", "case_number looks like the patient"),
        ("Patient name", "xy", "Patient name looks like the patient"),
        ("phase", ("train", "test"), "phase looks like the split"),
    ],
)
def test_unknown_columns_that_look_like_patient_or_split_raise(
    tmp_path: Path, write: Write, column: str, values: tuple[str, str], message: str
) -> None:
    for k in range(2):
        write(f"{k}.png")
    lines = [f"{k}.png,a,{values[k]}" for k in range(2)]
    source = write_list(tmp_path, "\n".join([f"path,label,{column}", *lines]))
    assert message in error_of(lambda: open_catalog(source))


def test_spellings_of_one_label_are_merged(tmp_path: Path, write: Write) -> None:
    labels = ["NORMAL", "Normal", "NORMAL", "3", "3.0", "3"]
    for k in range(6):
        write(f"{k}.png")
    text = "path,label\n" + "".join(f"{k}.png,{label}\n" for k, label in enumerate(labels))
    rows, notes = rows_and_notes(tmp_path, text)
    assert [r.finding for r in rows] == ["NORMAL"] * 3 + ["3"] * 3
    assert "label 'Normal' (1 row) read as 'NORMAL'" in notes
    assert "label '3.0' (1 row) read as '3'" in notes


def test_exports_of_spreadsheets_and_pandas_are_read(tmp_path: Path, write: Write) -> None:
    write("images/1.png")
    write("images/2.png")
    text = "path,label,patient,,\nimages\\1.png,a,nan,,\nimages\\2.png,b,nan,,\n,,,,\n,,,,\n"
    rows, _ = rows_and_notes(tmp_path, text)
    assert [r.patient for r in rows] == ["images/1.png", "images/2.png"]
    utf16 = tmp_path / "utf16.csv"
    utf16.write_text(text, encoding="utf-16")
    assert len(open_catalog(str(utf16), resplit=False)) == 2
    missing = write_list(tmp_path, "path,label\nimages/1.png,nan\n")
    assert "line 2: no label" in error_of(lambda: open_catalog(missing))


def test_a_placeholder_does_not_identify_a_patient(tmp_path: Path, write: Write) -> None:
    for k in range(20):
        write(f"{k}.png")
    text = "path,label,patient\n" + "".join(
        f"{k}.png,{'ab'[k % 2]},{'p1' if k == 7 else 'ANONYMOUS'}\n" for k in range(20)
    )
    rows, notes = rows_and_notes(tmp_path, text)
    assert len({r.patient for r in rows}) == 20
    assert "19 of 20 rows have the patient 'ANONYMOUS'" in notes
