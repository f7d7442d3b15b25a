"""Checks of a catalogue before it is used, and its description."""

from collections.abc import Sequence

import numpy as np

from cxr_tf import console
from cxr_tf.data.catalog import MAX_LABELS, RESERVED_COLUMNS, SPLITS, Catalog, contradictory
from cxr_tf.data.splits import check_leakage, leakage
from cxr_tf.errors import UserError


def check(
    catalog: Catalog, *, task: str, classes: Sequence[str] = (), allow_leakage: bool = False
) -> None:
    """Raise UserError for a catalogue that must not be trained on.

    `classes` are those of a trained model, where they differ from this catalogue's. Refused are a
    patient or an identical image in two splits (unless `allow_leakage`, or the split is a published
    one), a class without images in a split, and a task that the findings do not support.
    """
    classes = classes or catalog.classes(task)
    labels = catalog.labels(task, classes)
    if not 2 <= len(classes) <= MAX_LABELS:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise UserError(
            f"{catalog.source} has {len(classes)} different labels ({shown}); "
            f"a classifier needs 2 to {MAX_LABELS}"
        )
    if reserved := sorted(set(classes) & RESERVED_COLUMNS):
        raise UserError(
            f"{catalog.source}: a label cannot be called '{reserved[0]}', the name of a column in "
            "prediction tables; rename the label"
        )
    for split in SPLITS:
        rows = catalog.rows(split)
        for index, name in enumerate(classes):
            if not np.any(labels[rows] == index):
                raise UserError(
                    f"{catalog.source}: no '{name}' image in the {split} split "
                    f"({len(rows)} images); {task} needs every class in every split"
                )
    check_leakage(catalog, allow_leakage=allow_leakage)


def describe(catalog: Catalog) -> str:
    """Return a table of the catalogue as text: images and patients by finding and split."""
    splits = [s for s in (*SPLITS, "") if any(r.split == s for r in catalog.radiographs)]
    columns = [[r for r in catalog.radiographs if r.split == s] for s in splits]
    columns.append(list(catalog.radiographs))
    lines = [f"{catalog.source}: {len(catalog)} images, {len(set(catalog.patients))} patients"]
    if catalog.is_phantom:
        lines.append("  synthetic phantoms, not radiographs of people")
    rows = [
        *([f, *(sum(r.finding == f for r in c) for c in columns)] for f in catalog.findings),
        ["images", *map(len, columns)],
        ["patients", *(len({r.patient for r in c}) for c in columns)],
    ]
    header = ["", *(s or "no split" for s in splits), "all"]
    lines.append(console.table(header, rows, indent=2))
    return "\n".join([*lines, *(f"  note: {n}" for n in notes(catalog))])


def notes(catalog: Catalog) -> list[str]:
    """Return notes on splits, patients and identical images, one sentence each."""
    findings: dict[str, set[str]] = {}
    for r in catalog.radiographs:
        findings.setdefault(r.digest, set()).add(r.finding)
    lines = list(catalog.notes)
    if unknown := catalog.without_patient:
        lines.append(
            f"{unknown} images have no known patient and count as one patient each; if patients "
            "have several images, name them in the column patient of a .csv list"
        )
    if copies := len(catalog) - len(findings):
        lines.append(f"{copies} images are byte-identical copies of another")
    if conflicts := sum(map(contradictory, findings.values())):
        lines.append(f"{conflicts} images appear under two labels, as identical files")
    if catalog.published_split and (leaks := leakage(catalog)):
        lines.append(
            f"the published split is kept unchanged, although {len(leaks)} images or patients "
            "appear in two splits"
        )
    return lines
