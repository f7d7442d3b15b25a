"""CSV lists of radiographs: one row per image, with its label, patient and split."""

import csv
from dataclasses import dataclass
from pathlib import Path

from cxr_tf.data.conventions import (
    FINDING_FOLDERS,
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    Row,
    finding_of,
    patient_of,
)
from cxr_tf.errors import UserError


def rows_of_list(file: Path, *, as_written: bool) -> list[Row]:
    """Return the images of a .csv list; `as_written` keeps all labels as custom ones."""
    listed = read_list(file)
    # Labels have the meaning of folder names, but only if all of them are such names.
    standard = not as_written and all(row.label.lower() in FINDING_FOLDERS for row in listed)
    rows: list[Row] = []
    for row in listed:
        if row.path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{row.where}: neither .jpeg, .jpg nor .png: {row.path}; "
                "convert DICOM with prepare_data.py --source dicom"
            )
        finding = row.label
        if standard:
            finding = finding_of(FINDING_FOLDERS[finding.lower()], row.path)
        rows.append(
            (row.path, finding, row.patient or patient_of(row.path, file.parent), row.split)
        )
    return rows


def groups_of_list(file: Path) -> list[tuple[tuple[str, str], ...]]:
    """Return the group columns of each image of a .csv list, as (column, value) pairs."""
    return [row.groups for row in read_list(file)]


# Columns of patients and acquisition that scores are divided by.
GROUP_COLUMNS = ("age", "sex", "view", "site", "device")


@dataclass(frozen=True)
class Listed:
    """One line of a list; an unknown patient or split is empty."""

    where: str
    path: Path
    label: str
    patient: str
    split: str
    groups: tuple[tuple[str, str], ...] = ()


def read_list(file: Path) -> list[Listed]:
    """Read a .csv with the columns path (relative to it) and label, optionally patient, split and
    GROUP_COLUMNS.

    Raises UserError with the line number.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            start, header = 0, lines.readline()
            if header.lower().startswith("sep="):  # a directive of Excel
                start, header = lines.tell(), lines.readline()
            # Spreadsheets write semicolons where the comma is the decimal separator.
            delimiter = max(",;\t", key=header.count)
            lines.seek(start)
            reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
            columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            skipped = 1 if start else 0
            table = [
                (
                    skipped + reader.line_num,
                    {k: (v or "").strip() for k, v in row.items() if k in columns},
                )
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{file} is not a list of comma-separated values in UTF-8: {error}"
        ) from None
    if missing := {"path", "label"} - set(columns):
        raise UserError(
            f"{file} has no column {' and '.join(sorted(missing))}; "
            f"its first line is {', '.join(columns) or 'empty'}"
        )
    for name in ("path", "label", "patient", "split"):
        if columns.count(name) > 1:
            raise UserError(f"{file} has more than one column {name}: keep one")
    if not table:
        raise UserError(f"{file} lists no image")
    some_split = any(row.get("split") for _, row in table)
    listed: list[Listed] = []
    seen: dict[Path, int] = {}
    for number, row in table:
        where = f"{file}, line {number}"
        if not row["path"] or not row["label"]:
            raise UserError(f"{where}: no {'label' if row['path'] else 'path'}")
        path = file.parent / row["path"]
        if path in seen:
            raise UserError(f"{where}: {row['path']} is already in line {seen[path]}")
        if not path.is_file():
            raise UserError(f"{where}: no such file: {path}")
        seen[path] = number
        split = row.get("split", "").lower()
        if some_split and split not in SPLIT_FOLDERS:
            raise UserError(f"{where}: split is '{split}'; it must be train, val or test")
        split = SPLIT_FOLDERS[split] if split else ""
        groups = tuple((name, row[name]) for name in GROUP_COLUMNS if name in row)
        listed.append(Listed(where, path, row["label"], row.get("patient", ""), split, groups))
    return listed


def check_utf8(path: Path) -> None:
    """Raise UserError for a name that is not UTF-8, which no table or report can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"{shown}: the file's name is not UTF-8, as in archives of old systems; rename it"
        ) from None
