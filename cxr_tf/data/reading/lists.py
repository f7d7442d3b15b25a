"""CSV lists of radiographs: one row per image, with its label, patient and split."""

import codecs
import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cxr_tf.data.reading.conventions import (
    FINDING_FOLDERS,
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    Row,
    finding_of,
    patient_of,
)
from cxr_tf.errors import UserError

# Spellings of the columns, in lower case and without punctuation.
SPELLINGS: dict[str, set[str]] = {
    "path": set(),
    "label": set(),
    "patient": {
        "patientid",
        "patientno",
        "patientnumber",
        "subject",
        "subjectid",
        "personid",
        "pid",
    },
    "split": {"set", "subset", "dataset", "fold", "partition", "usage"},
}

_PATIENT_COLUMN = re.compile(r"(patient|subject|person|case).*(id|no|nr|num|number|code|name|key)$")

# Spellings of a missing value in files of spreadsheets and pandas.
NO_LABEL = frozenset({"", "nan", "null", "n/a", "#n/a", "<na>"})
NO_VALUE = NO_LABEL | {"na", "none", "-", "?", "unknown"}

# A patient that at least this share of the rows has in common is a placeholder, such as ANONYMOUS.
PLACEHOLDER_SHARE, MIN_PLACEHOLDER_ROWS = 0.9, 10


def rows_of_list(file: Path, *, as_written: bool) -> tuple[list[Row], tuple[str, ...]]:
    """Return the images of a .csv list, and notes; with `as_written`, all labels are custom."""
    listed, notes = read_list(file)
    # Labels have the meaning of folder names, but only if all of them are such names.
    standard = not as_written and all(row.label.lower() in FINDING_FOLDERS for row in listed)
    if not standard:
        listed, merged = _merge_spellings(listed)
        notes += merged
    patients = [row.patient for row in listed]
    if placeholder := placeholder_patient(patients):
        notes += (
            f"{patients.count(placeholder)} of {len(patients)} rows have the patient "
            f"'{placeholder}', which is treated as an unknown patient",
        )
    rows: list[Row] = []
    for row in listed:
        if row.path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{row.where}: {row.path} is not a .jpeg, .jpg or .png file; "
                "convert DICOM with prepare_data.py --source dicom"
            )
        finding = row.label
        if standard:
            finding = finding_of(FINDING_FOLDERS[finding.lower()], row.path)
        patient = "" if row.patient == placeholder else row.patient
        rows.append((row.path, finding, patient or patient_of(row.path, file.parent), row.split))
    return rows, notes


def groups_of_list(file: Path) -> list[tuple[tuple[str, str], ...]]:
    """Return the group columns of each image of a .csv list, as (column, value) pairs."""
    return [row.groups for row in read_list(file)[0]]


# Columns on patients and acquisition that define the subgroups of scores.
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


def placeholder_patient(patients: Sequence[str]) -> str:
    """Return the value that nearly all rows share as their patient, or an empty string."""
    if len(patients) < MIN_PLACEHOLDER_ROWS:
        return ""
    value, count = Counter(patients).most_common(1)[0]
    return value if count >= PLACEHOLDER_SHARE * len(patients) else ""


def read_list(file: Path) -> tuple[list[Listed], tuple[str, ...]]:
    """Read a .csv list, and return its rows and notes, such as which columns were ignored.

    The list has the columns path (relative to the list) and label, and optionally patient, split
    and those of GROUP_COLUMNS. Raises UserError for an unreadable file, an invalid line (with its
    number), and a column that would be ignored but looks like a patient or a split.
    """
    header, table = _read_table(file)
    columns = _columns(file, header, [row for _, row in table])
    if not table:
        raise UserError(f"{file} lists no image")

    def value(row: list[str], field: str, missing: frozenset[str]) -> str:
        at = columns.get(field, len(row))
        text = row[at] if at < len(row) else ""
        return "" if text.lower() in missing else text

    some_split = any(value(row, "split", NO_VALUE) for _, row in table)
    listed: list[Listed] = []
    seen: dict[Path, int] = {}
    for number, row in table:
        where = f"{file}, line {number}"
        name, label = value(row, "path", frozenset()), value(row, "label", NO_LABEL)
        if not name or not label:
            raise UserError(f"{where}: no {'label' if name else 'path'}")
        path = file.parent / name
        if "\\" in name and not path.is_file():
            path = file.parent / name.replace("\\", "/")
        if path in seen:
            raise UserError(f"{where}: {name} is already listed on line {seen[path]}")
        if not path.is_file():
            raise UserError(f"{where}: no such file: {path}")
        seen[path] = number
        split = value(row, "split", NO_VALUE).lower()
        if some_split and split not in SPLIT_FOLDERS:
            raise UserError(
                f"{where}: split is '{split}'; it must be train, val or test"
                if split
                else f"{where}: no split, although other lines have one; give train, val or test"
            )
        split = SPLIT_FOLDERS[split] if split else ""
        groups = tuple(
            (name, row[at] if at < len(row) else "") for name, at in _group_columns(header)
        )
        listed.append(Listed(where, path, label, value(row, "patient", NO_VALUE), split, groups))
    used = {*columns.values(), *(at for _, at in _group_columns(header))}
    ignored = [name for k, name in enumerate(header) if k not in used and name]
    renamed = [f"{header[k]} as {f}" for f, k in columns.items() if header[k].lower() != f]
    notes = []
    if renamed:
        notes.append(f"columns read: {', '.join(renamed)}")
    if ignored:
        notes.append(f"columns ignored: {', '.join(ignored)}")
    return listed, tuple(notes)


def _group_columns(header: list[str]) -> list[tuple[str, int]]:
    """Return the name and position of each of GROUP_COLUMNS that a list has."""
    names = [name.lower() for name in header]
    return [(name, names.index(name)) for name in GROUP_COLUMNS if name in names]


def _read_table(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and (line number, cells) of each row that is not empty."""
    content = file.read_bytes()
    encoding = (
        "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    )
    try:
        lines = io.StringIO(content.decode(encoding), newline="")
        start, first = 0, lines.readline()
        if first.lower().startswith("sep="):  # a directive of Excel
            start, first = lines.tell(), lines.readline()
        lines.seek(start)
        skipped = 1 if start else 0
        # Spreadsheets write semicolons if the comma is the decimal separator.
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        table = [(skipped + reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except UnicodeError as error:
        raise UserError(f"{file} is not in UTF-8: save it in UTF-8 ({error})") from None
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as a .csv list: {error}") from None
    return header, [(number, row) for number, row in table if any(row)]


def _columns(file: Path, header: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Return the position of each known column."""
    plain = ["".join(filter(str.isalnum, name.lower())) for name in header]

    def is_split(column: int) -> bool:
        values = {row[column].lower() for row in rows if column < len(row)} - NO_VALUE
        return len(values) > 1 and values <= set(SPLIT_FOLDERS)

    columns: dict[str, int] = {}
    for field, spellings in SPELLINGS.items():
        exact = [k for k, name in enumerate(header) if name.lower() == field]
        near = [k for k, name in enumerate(plain) if name in spellings]
        if field == "split":  # `set` or `fold` may also name something else
            near = [k for k in near if is_split(k)]
        if len(exact) > 1 or (not exact and len(near) > 1):
            names = ", ".join(header[k] for k in exact or near)
            raise UserError(f"{file} has more than one column {field} ({names}): keep one")
        if exact or near:
            columns[field] = (exact or near)[0]
    if missing := {"path", "label"} - set(columns):
        raise UserError(
            f"{file} has no column {' and '.join(sorted(missing))}; "
            f"its first line is {', '.join(header) or 'empty'}"
        )
    others = [k for k in range(len(header)) if k not in columns.values()]
    for field, looks_like in (
        ("patient", lambda k: _PATIENT_COLUMN.search(plain[k])),
        ("split", is_split),
    ):
        if field not in columns and (suspects := [header[k] for k in others if looks_like(k)]):
            raise UserError(
                f"{file}: the column {suspects[0]} looks like the {field}. Rename it to {field}, "
                "or remove it"
            )
    return columns


def _merge_spellings(listed: list[Listed]) -> tuple[list[Listed], tuple[str, ...]]:
    """Merge labels that differ only in case or number format into the most frequent spelling."""
    counts = Counter(row.label for row in listed)
    chosen: dict[str, str] = {}
    for label, _ in counts.most_common():
        chosen.setdefault(_label_key(label), label)
    notes = tuple(
        f"label '{label}' ({count} row{'s' if count > 1 else ''}) "
        f"read as '{chosen[_label_key(label)]}'"
        for label, count in sorted(counts.items())
        if chosen[_label_key(label)] != label
    )
    return [replace(row, label=chosen[_label_key(row.label)]) for row in listed], notes


def _label_key(label: str) -> str:
    """Return a key that the spellings of one label share: `Normal` and `NORMAL`, `3` and `3.0`."""
    with contextlib.suppress(ValueError):
        return str(float(label))
    return " ".join(label.lower().split())


def check_utf8(path: Path) -> None:
    """Raise UserError for a path that is not UTF-8, which tables and reports cannot contain."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"{shown}: the path is not valid UTF-8; rename the file or its folder"
        ) from None
