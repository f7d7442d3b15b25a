"""What a run checks and reports before it trusts a catalogue."""

from collections.abc import Iterable, Sequence

import numpy as np

from cxr_tf.data.catalog import COLUMNS, MOST_LABELS, SPLITS, Catalog, contradict
from cxr_tf.data.splits import check_leakage, leakage
from cxr_tf.errors import UserError


def check(
    catalog: Catalog, *, task: str, classes: Sequence[str] = (), allow_leakage: bool = False
) -> None:
    """Stops a run that could not be trusted.

    `classes` are those of a finished model, where they are not this catalogue's own. Raises
    UserError for a patient or an identical image in two splits (unless `allow_leakage`, or
    the split is a published one), for a class without images in a split, and for a task that the
    findings do not support.
    """
    classes = classes or catalog.classes(task)
    labels = catalog.labels(task, classes)
    if not 2 <= len(classes) <= MOST_LABELS:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise UserError(
            f"{catalog.source} has {len(classes)} different labels ({shown}); "
            f"2 to {MOST_LABELS} can be told apart"
        )
    if taken := sorted(set(classes) & COLUMNS):
        raise UserError(
            f"{catalog.source}: a label cannot be called '{taken[0]}': tables of predictions have "
            "a column of that name"
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
    """What the catalogue holds, as a table for the screen: finding by split, images, patients."""
    splits = [s for s in (*SPLITS, "") if any(r.split == s for r in catalog.radiographs)]
    columns = [[r for r in catalog.radiographs if r.split == s] for s in splits]
    columns.append(list(catalog.radiographs))
    width = max(10, *map(len, catalog.findings)) + 2

    def line(name: str, cells: Iterable[object]) -> str:
        return f"  {name:<{width}}" + "".join(f"{cell:>9}" for cell in cells)

    lines = [f"{catalog.source}: {len(catalog)} images, {len(set(catalog.patients))} patients"]
    if catalog.is_phantom:
        lines.append("  synthetic phantoms, not radiographs of people")
    lines.append(line("", [*(s or "no split" for s in splits), "all"]))
    for finding in catalog.findings:
        lines.append(line(finding, [sum(r.finding == finding for r in c) for c in columns]))
    lines.append(line("images", map(len, columns)))
    lines.append(line("patients", [len({r.patient for r in c}) for c in columns]))
    return "\n".join([*lines, *(f"  note: {n}" for n in notes(catalog))])


def notes(catalog: Catalog) -> list[str]:
    """What was done to the splits, and what there is to say of identical images."""
    findings: dict[str, set[str]] = {}
    for r in catalog.radiographs:
        findings.setdefault(r.digest, set()).add(r.finding)
    said = list(catalog.notes)
    if untold := catalog.without_patient:
        said.append(
            f"{untold} images do not tell their patient, and count as one patient each: where "
            "patients have several, name them in a .csv list, in a column patient"
        )
    if copies := len(catalog) - len(findings):
        said.append(f"{copies} images are byte-identical copies of another")
    if torn := sum(map(contradict, findings.values())):
        said.append(f"{torn} images stand under two labels, as identical files")
    if catalog.published_split and (leaks := leakage(catalog)):
        said.append(
            f"the published split is kept as it is, though {len(leaks)} images or patients stand "
            "in two splits"
        )
    return said
