"""Check a catalogue before it is used, and describe it."""

from collections.abc import Sequence

import numpy as np

from cxr_tf import console
from cxr_tf.data.catalog import (
    MAX_LABELS,
    RESERVED_COLUMNS,
    SPLITS,
    Catalog,
    Radiograph,
    contradictory,
    counted,
)
from cxr_tf.data.splits import check_leakage, leakage
from cxr_tf.errors import UserError

# Warn if a split has fewer images of a class than this: even with 10 of 10 correct, the 95 %
# interval of the sensitivity begins at 0.69.
MIN_IMAGES = 10


def check(
    catalog: Catalog, *, task: str, classes: Sequence[str] = (), allow_leakage: bool = False
) -> None:
    """Raise UserError for a catalogue that must not be trained on.

    `classes` are those of a trained model, if they differ from this catalogue's. The error is
    raised for a task that the findings do not support, fewer than 2 or more than MAX_LABELS
    classes, a label that is the name of a column, and a class without images in a split; and,
    unless the split is a published one, for identical images under two labels, and (unless
    `allow_leakage`) a patient or an identical image in two splits.
    """
    classes = classes or catalog.classes(task)
    labels = catalog.labels(task, classes)
    if not 2 <= len(classes) <= MAX_LABELS:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise UserError(
            f"{catalog.source} has {counted(len(classes), 'label', 'different labels')} ({shown}); "
            f"a classifier needs 2 to {MAX_LABELS}"
        )
    if reserved := sorted(set(classes) & RESERVED_COLUMNS):
        raise UserError(
            f"{catalog.source}: a label cannot be called '{reserved[0]}', the name of a column in "
            "prediction tables; rename the label"
        )
    if conflict := _conflicting_labels(catalog):
        raise UserError(f"{catalog.source}: {conflict}")
    for split in SPLITS:
        rows = catalog.rows(split)
        for index, name in enumerate(classes):
            if not np.any(labels[rows] == index):
                cause = _cause(catalog, labels == index, name)
                raise UserError(
                    f"{catalog.source}: no '{name}' image in the {split} split "
                    f"({counted(len(rows), 'image', 'images')}); a classifier needs every class "
                    f"in every split. {cause}"
                )
    check_leakage(catalog, allow_leakage=allow_leakage)


def _conflicting_labels(catalog: Catalog) -> str:
    """Return a sentence about a file with two labels; empty if none, or for a published split."""
    first: dict[str, Radiograph] = {}
    for r in () if catalog.published_split else catalog.radiographs:
        other = first.setdefault(r.digest, r)
        if contradictory({r.finding, other.finding}):
            return (
                f"{other.path} ({other.finding}) and {r.path} ({r.finding}) are identical files "
                "under two labels. Remove the wrong one"
            )
    return ""


def _cause(catalog: Catalog, of_class: np.ndarray, name: str) -> str:
    """Explain why a split has no image of a class; of_class: bool [N]."""
    patients = {catalog.patients[i] for i in np.flatnonzero(of_class)}
    images = int(np.sum(of_class))
    if not images:
        return f"There is no '{name}' image at all"
    if len(patients) >= len(SPLITS):
        return f"Move some of the {images} '{name}' images to that split"
    return (
        f"All '{name}' images ({images}) are of {counted(len(patients), 'patient', 'patients')} "
        f"({', '.join(sorted(patients))}), and a patient's images stay in one split. If there are "
        "more patients, name them in a .csv list"
    )


def split_warnings(catalog: Catalog, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return warnings about leakage and about too few images, one sentence each.

    labels: class index of each row, int64 [N].
    """
    lines = []
    if leaks := leakage(catalog):
        lines.append(
            "leakage: "
            + counted(
                len(leaks), "patient or identical image is", "patients or identical images are"
            )
            + f" in more than one split, so scores are too optimistic ({leaks[0]})"
        )
    present = [s for s in SPLITS if len(catalog.rows(s))]
    parts = {s: catalog.rows(s) for s in present} or {"": np.arange(len(catalog))}
    for split, rows in parts.items():
        for index, name in enumerate(classes):
            count = int(np.sum(labels[rows] == index))
            if 0 < count < MIN_IMAGES:
                where = f"the {split} split" if split else "the data set"
                images = counted(count, f"'{name}' image", f"'{name}' images")
                lines.append(
                    f"{where} has only {images}: "
                    + ("too few to train on" if split == "train" else "too few for reliable scores")
                )
    return lines


def describe(catalog: Catalog) -> str:
    """Return a table of the catalogue as text: images and patients by finding and split."""
    splits = [s for s in (*SPLITS, "") if any(r.split == s for r in catalog.radiographs)]
    columns = [[r for r in catalog.radiographs if r.split == s] for s in splits]
    columns.append(list(catalog.radiographs))
    images = counted(len(catalog), "image", "images")
    patients = counted(len(set(catalog.patients)), "patient", "patients")
    lines = [f"{catalog.source}: {images}, {patients}"]
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
            counted(unknown, "image has", "images have")
            + " no known patient: each such image counts as one patient; if a patient has several "
            "images, name the patient in the column patient of a .csv list"
        )
    if copies := len(catalog) - len(findings):
        lines.append(
            counted(
                copies,
                "image is a byte-identical copy of another",
                "images are byte-identical copies of others",
            )
        )
    if conflicts := sum(map(contradictory, findings.values())):
        lines.append(
            counted(conflicts, "image appears", "images appear")
            + " under two labels, as identical files"
        )
    if catalog.published_split and (leaks := leakage(catalog)):
        lines.append(
            "the published split is kept unchanged, although "
            + counted(len(leaks), "image or patient appears", "images or patients appear")
            + " in more than one split"
        )
    return lines
