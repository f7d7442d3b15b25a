"""Draw splits by patient, complete those of a source, and check them for leakage."""

from collections import Counter
from dataclasses import replace

import numpy as np

from cxr_tf.data.catalog import Catalog, class_of, counted, short_path
from cxr_tf.errors import UserError

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}

# A validation split with fewer images cannot rank models or determine a threshold: the published
# Kermany `val` has 16.
SMALLEST_VALIDATION = 100


def check_leakage(catalog: Catalog, *, allow_leakage: bool) -> None:
    """Raise UserError for leakage, unless it is allowed or the split is a published one."""
    leaks = leakage(catalog)
    if leaks and not allow_leakage and not catalog.published_split:
        raise UserError(
            f"{catalog.source}: {leaks[0]}"
            + (f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else "")
            + ". Fix the splits, or pass --allow-leakage"
        )


def leakage(catalog: Catalog) -> list[str]:
    """Return a sentence for each patient or identical image that is in more than one split."""
    sentences = []
    for kind, attribute in (("patient", "patient"), ("identical image", "digest")):
        splits: dict[str, dict[str, str]] = {}
        for r in catalog.radiographs:
            splits.setdefault(getattr(r, attribute), {}).setdefault(r.split, r.path)
        for value, where in sorted(splits.items()):
            if len(where) > 1:
                files = " and ".join(f"{s}: {short_path(p)}" for s, p in sorted(where.items()))
                name = f" {value}" if kind == "patient" else ""
                sentences.append(f"{kind}{name} appears in {len(where)} splits ({files})")
    return sentences


def split_by_patient(
    catalog: Catalog, fractions: dict[str, float], *, seed: int, task: str = ""
) -> dict[int, str]:
    """Draw splits for all rows, stratified by finding: {row: split}.

    All images of a patient, and all identical images, are in the same split. Within each finding
    the patients are shuffled and assigned: first one to each split, then each to the split that is
    furthest below its share. So every split has the finding if there are enough patients, and the
    fractions hold for small catalogues too. A finding with fewer patients than there are splits is
    drawn together with the rest of its class in the task.
    """
    rng = np.random.default_rng(seed)
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(_groups(catalog)):
        groups.setdefault(group, []).append(row)
    strata: dict[str, list[list[int]]] = {}
    for members in groups.values():
        finding = Counter(catalog.radiographs[i].finding for i in members).most_common(1)[0][0]
        strata.setdefault(finding, []).append(members)
    for finding in [f for f, groups_of in strata.items() if len(groups_of) < len(fractions)]:
        others = [
            f for f in strata if f != finding and class_of(f, task) == class_of(finding, task)
        ]
        if others:
            strata[min(others)] += strata.pop(finding)
    drawn: dict[int, str] = {}
    for finding in sorted(strata):
        members_of = strata[finding]
        total = sum(map(len, members_of))
        missing = {split: fraction * total for split, fraction in fractions.items()}
        for position, index in enumerate(rng.permutation(len(members_of))):
            if position < len(fractions) <= len(members_of):
                split = list(fractions)[position]
            else:
                split = max(missing, key=lambda s: (missing[s], s))
            missing[split] -= len(members_of[index])
            drawn.update(dict.fromkeys(members_of[index], split))
    return drawn


def resolve_splits(catalog: Catalog, seed: int, task: str = "") -> Catalog:
    """Draw the splits that the source lacks, and add a note of the reason to the catalogue.

    Without train or test, all splits are drawn. A given validation split is kept if it is large
    enough and has all classes of the task (without a task, all findings) that train has; otherwise
    train and val are pooled and split again.
    """
    if catalog.published_split:
        return catalog
    counts = Counter(r.split for r in catalog.radiographs)
    if not counts["train"] or not counts["test"]:
        reason = "no splits given" if counts[""] else "no train or no test split"
        note = f"{reason}: all images split by patient 70/15/15 with seed {seed}"
        return _redraw(catalog, set(counts), FRACTIONS, seed, note, task)
    classes = {class_of(r.finding, task) for r in catalog.radiographs if r.split == "train"}
    in_val = {class_of(r.finding, task) for r in catalog.radiographs if r.split == "val"}
    if counts["val"] >= SMALLEST_VALIDATION and classes <= in_val:
        return catalog
    if not counts["val"]:
        reason = "no val split"
    elif counts["val"] < SMALLEST_VALIDATION:
        reason = f"val has only {counted(counts['val'], 'image', 'images')}"
    else:
        reason = f"val has no {' or '.join(sorted(classes - in_val))} image"
    share = FRACTIONS["val"] / (FRACTIONS["train"] + FRACTIONS["val"])
    note = f"{reason}: train and val pooled and split again by patient with seed {seed}"
    return _redraw(catalog, {"train", "val"}, {"train": 1 - share, "val": share}, seed, note, task)


def _redraw(
    catalog: Catalog, splits: set[str], fractions: dict[str, float], seed: int, note: str, task: str
) -> Catalog:
    rows = [i for i, r in enumerate(catalog.radiographs) if r.split in splits]
    drawn = split_by_patient(catalog.take(rows), fractions, seed=seed, task=task)
    radiographs = list(catalog.radiographs)
    for position, split in drawn.items():
        radiographs[rows[position]] = replace(radiographs[rows[position]], split=split)
    return replace(catalog, radiographs=tuple(radiographs), notes=(*catalog.notes, note))


def _groups(catalog: Catalog) -> np.ndarray:
    """Return the group of each row: rows that share a patient or a digest, transitively."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A bipartite graph, with rows on one side and patients and digests on the other; a connected
    # component is a group.
    n = len(catalog)
    keys: dict[tuple[str, str], int] = {}
    edges = [
        (row, n + keys.setdefault(key, len(keys)))
        for row, r in enumerate(catalog.radiographs)
        for key in (("patient", r.patient), ("digest", r.digest))
    ]
    left, right = np.array(edges).T
    size = n + len(keys)
    graph = coo_array((np.ones(len(edges)), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:n]
