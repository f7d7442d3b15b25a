"""Checks of a catalogue before it is used, and its description."""

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
    raised for a patient or an identical image in two splits (unless `allow_leakage`, or the split
    is a published one), identical images under two labels, a class without images in a split, and a
    task that the findings do not support.
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
    if conflict := _conflicting_labels(catalog):
        raise UserError(f"{catalog.source}: {conflict}")
    for split in SPLITS:
        rows = catalog.rows(split)
        for index, name in enumerate(classes):
            if not np.any(labels[rows] == index):
                cause = _cause(catalog, labels == index, name)
                raise UserError(
                    f"{catalog.source}: no '{name}' image in the {split} split "
                    f"({len(rows)} images); {task} needs every class in every split. {cause}"
                )
    check_leakage(catalog, allow_leakage=allow_leakage)


def _conflicting_labels(catalog: Catalog) -> str:
    """Return a sentence about a file with two labels; empty if none, or for a published split."""
    first: dict[str, Radiograph] = {}
    for r in () if catalog.published_split else catalog.radiographs:
        other = first.setdefault(r.digest, r)
        if contradictory({r.finding, other.finding}):
            return (
                f"{other.path} ({other.finding}) and {r.path} ({r.finding}) are the same file "
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
        return f"Move some of the {images} '{name}' images there"
    return (
        f"All {images} '{name}' images are of {len(patients)} "
        f"patient{'s' if len(patients) > 1 else ''} ({', '.join(sorted(patients))}), and patients "
        "are not divided between splits. If there are more patients, name them in a .csv list"
    )


def split_warnings(catalog: Catalog, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return warnings about leakage and about too few images, one sentence each.

    labels: class index of each row, int64 [N].
    """
    lines = []
    if leaks := leakage(catalog):
        lines.append(
            f"leakage: {len(leaks)} patients or identical images are in more than one split, so "
            f"scores are too optimistic ({leaks[0]})"
        )
    present = [s for s in SPLITS if len(catalog.rows(s))]
    parts = {s: catalog.rows(s) for s in present} or {"": np.arange(len(catalog))}
    for split, rows in parts.items():
        for index, name in enumerate(classes):
            count = int(np.sum(labels[rows] == index))
            if 0 < count < MIN_IMAGES:
                where = f"the {split} split has" if split else "there are"
                lines.append(
                    f"{where} only {count} '{name}' images: "
                    + ("too few to train on" if split == "train" else "too few for reliable scores")
                )
    return lines


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
        lines.append(f"{copies} images are byte-identical copies of others")
    if conflicts := sum(map(contradictory, findings.values())):
        lines.append(f"{conflicts} images appear under two labels, as identical files")
    if catalog.published_split and (leaks := leakage(catalog)):
        lines.append(
            f"the published split is kept unchanged, although {len(leaks)} images or patients "
            "appear in two splits"
        )
    return lines
