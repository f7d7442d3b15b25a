"""CSV lists of radiographs."""

from dataclasses import replace
from pathlib import Path

import pytest
from catalogs import Write, error_of, write_list

from cxr_tf.data.checks import check
from cxr_tf.data.lists import read_list
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.splits import leakage


def test_a_list_with_custom_labels(tmp_path: Path, write: Write) -> None:
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


def test_a_list_from_a_spreadsheet(tmp_path: Path, write: Write) -> None:
    for name in ("1.png", "2.png"):
        write(name)
    rows = "1.png;normal;train\n2.png;viral;test\n"
    plain = read_list(Path(write_list(tmp_path, "path;label;split\n" + rows)))
    marked = read_list(Path(write_list(tmp_path, "sep=;\npath;label;split\n" + rows)))
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
        ("path,label\na.png,x\na.png,y\n", "line 3: a.png is already in line 2"),
        ("path,label,split\na.png,x,holdout\n", "split is 'holdout'"),
        ("path,label\ncatalogue.csv,x\n", "neither .jpeg, .jpg nor .png"),
    ],
)
def test_list_errors_name_the_line(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write("a.png")
    assert message in error_of(lambda: open_catalog(write_list(tmp_path, text)))


def test_a_binary_file_is_not_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe\x00,x")
    assert "in UTF-8" in error_of(lambda: open_catalog(str(tmp_path / "a.csv")))
