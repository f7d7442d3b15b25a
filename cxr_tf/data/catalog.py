"""One row per radiograph: path, finding, patient, split.

    catalog = open_catalog("chest_xray", seed=0)
    print(describe(catalog))
    check(catalog, task="binary")          # UserError on what must not be trained on

Reads a folder, with or without split folders, a list, or MedMNIST's array file:

    chest_xray/train|val|test/NORMAL|PNEUMONIA/*.jpeg      as Kermany et al. 2018 published it
    chest_xray/train|val|test/NORMAL|BACTERIAL|VIRAL/*.png
    chest_xray/NORMAL|PNEUMONIA/*.jpeg                     split here by patient, 70/15/15
    catalogue.csv                                          path, label[, patient][, split]
    pneumoniamnist_64.npz                                  with its published split

The rows are settled before any image is decoded: a split that leaks must stop a run before it has
cost an hour.
"""

import contextlib
import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.data.reading import (
    FINDING_FOLDERS,
    PHANTOM_NAME,
    Row,
    check_utf8,
    read_folder,
    rows_of_list,
)
from cxr_tf.errors import UserError
from cxr_tf.paths import expanded

SPLITS = ("train", "val", "test")

# Of tables of predictions, beside those of the classes.
COLUMNS = {"path", "patient", "label", "predicted", "novelty", "reason"}
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}

# A validation split below this cannot rank models or place a threshold: the published Kermany `val`
# has 16 images.
SMALLEST_VALIDATION = 100

# What `--data phantom` is: enough for a validation split above that.
PHANTOM_COUNT = 800
PHANTOM_SIZE = 128

# What the named tasks call their classes, in the order of the model's outputs; `normal` is first.
# The third task, `labels`, takes the labels of the catalogue as they are.
TASKS: dict[str, tuple[str, ...]] = {
    "binary": ("normal", "pneumonia"),
    "three_class": ("normal", "bacterial", "viral"),
}

# More labels than this are rather a column of numbers or names, taken for labels.
MOST_LABELS = 20


@dataclass(frozen=True)
class Radiograph:
    """One image file and what is known of it.

    `finding` is normal, bacterial, viral, or pneumonia where the cause is not told; in a list with
    labels of its own it is that label. `split` is train, val, test, or empty where it is not
    settled yet. `digest` is the BLAKE2 hash of the
    file's bytes (hex, 128 bits), by which identical images are found.
    """

    path: str
    finding: str
    patient: str
    split: str
    digest: str


@dataclass(frozen=True)
class Catalog:
    """Radiographs in a fixed order, where they come from, and what was done to their splits.

    `findings` are the labels that occur, in the order of the classes of the task `labels`. A
    `published_split` is a benchmark's own: it is kept as it is, leaks included, because results on
    it stand beside those of others.
    """

    source: str
    radiographs: tuple[Radiograph, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    published_split: bool = False

    def __len__(self) -> int:
        return len(self.radiographs)

    @property
    def paths(self) -> list[str]:
        """File paths, in row order."""
        return [r.path for r in self.radiographs]

    @property
    def patients(self) -> list[str]:
        """Patient of each row."""
        return [r.patient for r in self.radiographs]

    @property
    def without_patient(self) -> int:
        """How many rows do not tell their patient, and count as one each."""
        return sum(r.patient.endswith(Path(r.path).name) for r in self.radiographs)

    @property
    def is_phantom(self) -> bool:
        """Whether the images are synthetic: reports must say so."""
        return bool(self.radiographs) and all(PHANTOM_NAME.match(Path(p).name) for p in self.paths)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, int64 [n]."""
        return np.array([i for i, r in enumerate(self.radiographs) if r.split == split], np.int64)

    def about(self) -> dict[str, Any]:
        """What a model's card says of the data; of the folder the name alone, not where it is."""
        return {
            "data": Path(self.source).resolve().name,
            "images": {split: len(self.rows(split)) for split in SPLITS},
            "data_fingerprint": self.fingerprint(),
            "data_is_phantom": self.is_phantom,
        }

    def learnt_from(self) -> set[str]:
        """Digests of the files that a model is trained on or chosen by."""
        return {r.digest for r in self.radiographs if r.split in ("train", "val")}

    def take(self, rows: Iterable[int]) -> "Catalog":
        """The catalogue of these rows alone, in this order."""
        return replace(self, radiographs=tuple(self.radiographs[int(i)] for i in rows))

    def classes(self, task: str) -> tuple[str, ...]:
        """Class names of a task, in the order of the model's outputs."""
        return self.findings if task == "labels" else task_classes(task)

    def labels(self, task: str, classes: Sequence[str] = ()) -> np.ndarray:
        """Class index of each row for a task, int64 [N].

        `classes` are those of a finished model, where they are not this catalogue's own. Raises
        UserError where a finding cannot be named in the task's classes.
        """
        classes = list(classes or self.classes(task))
        named = [_as_class(r.finding, task) for r in self.radiographs]
        if unknown := sorted(set(named) - set(classes)):
            raise UserError(f"{self.source}: {_unsupported(unknown, task, classes)}")
        return np.array([classes.index(name) for name in named], np.int64)

    def fingerprint(self) -> str:
        """Hash over finding, patient, split and content of all rows: equal data, equal hash.

        Paths do not enter, so that a moved folder is the same data.
        """
        rows = sorted(f"{r.digest} {r.finding} {r.patient} {r.split}" for r in self.radiographs)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=16).hexdigest()


def task_classes(task: str) -> tuple[str, ...]:
    """Class names of a named task, in the order of the model's outputs."""
    if task not in TASKS:
        raise UserError(f"unknown task '{task}'; known: {', '.join(TASKS)}, labels")
    return TASKS[task]


def open_catalog(
    source: str, *, seed: int = 0, resplit: bool = True, task: str = "", positive: str = ""
) -> Catalog:
    """Reads a folder, a .csv list or a .npz of radiographs and settles the splits.

    `resplit=False` leaves the splits as they are given (empty where they are not), which is what
    scoring a finished model needs. For the task `labels` a list's labels stay as they are written;
    else healthy, sick and the like mean what they do as names of folders. `positive` is the label
    that two-class scores are about; without it the order is normal first, then alphabetical.

    Raises UserError where there is nothing to read.
    """
    root = phantom_folder() if source == "phantom" else expanded(source)
    if not root.exists():
        raise UserError(f"no such folder or file: {source}{_did_you_mean(root)}")
    if root.is_dir():
        catalog = _catalog(root, *read_folder(root))
    elif root.suffix.lower() == ".csv":
        catalog = _catalog(root, rows_of_list(root, as_written=task == "labels"))
    elif root.suffix.lower() == ".npz":
        from cxr_tf.data import medmnist

        unpacked = medmnist.unpack(root)
        catalog = replace(_catalog(unpacked, *read_folder(unpacked)), published_split=True)
    else:
        raise UserError(f"not a folder, nor a .csv or .npz file: {source}")
    catalog = replace(catalog, source=str(root if source == "phantom" else source))
    if positive:
        catalog = replace(catalog, findings=_positive_last(catalog, positive))
    return settle_splits(catalog, seed) if resplit else catalog


def phantom_folder() -> Path:
    """The phantoms that `--data phantom` stands for, written to `data/` on first use."""
    from cxr_tf.data import phantom

    folder = Path("data") / f"phantom-v{phantom.GENERATOR_VERSION}"
    if not folder.exists():
        with contextlib.suppress(FileExistsError):  # written by another process meanwhile
            phantom.write_phantoms(folder, count=PHANTOM_COUNT, size=PHANTOM_SIZE, seed=0)
    return folder


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


def check_leakage(catalog: Catalog, *, allow_leakage: bool) -> None:
    """Raises UserError for a patient or an identical image in two splits, unless that is allowed,
    or the split is a published one."""
    leaks = leakage(catalog)
    if leaks and not allow_leakage and not catalog.published_split:
        raise UserError(
            f"{catalog.source}: {leaks[0]}"
            + (f" (and {len(leaks) - 1} more such)" if len(leaks) > 1 else "")
            + "; mend the splits, or go on all the same with --allow-leakage"
        )


def leakage(catalog: Catalog) -> list[str]:
    """Patients, and byte-identical images, that stand in two splits; one sentence each."""
    found = []
    for kind, attribute in (("patient", "patient"), ("identical image", "digest")):
        splits: dict[str, dict[str, str]] = {}
        for r in catalog.radiographs:
            splits.setdefault(getattr(r, attribute), {}).setdefault(r.split, r.path)
        for value, where in sorted(splits.items()):
            if len(where) > 1:
                files = " and ".join(f"{s}: {_short(p)}" for s, p in sorted(where.items()))
                name = f" {value}" if kind == "patient" else ""
                found.append(f"{kind}{name} stands in {len(where)} splits ({files})")
    return found


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


def split_by_patient(catalog: Catalog, fractions: dict[str, float], *, seed: int) -> dict[int, str]:
    """Draws splits for all rows: stratified by finding, whole patients, identical images together.

    Returns {row: split}. Within each finding the patients are shuffled and dealt, first one to each
    split, then one by one to the split that lacks most of its share: no split stays without the
    finding where there are patients enough, and shares hold for small catalogues too.
    """
    rng = np.random.default_rng(seed)
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(_groups(catalog)):
        groups.setdefault(group, []).append(row)
    strata: dict[str, list[list[int]]] = {}
    for members in groups.values():
        finding = Counter(catalog.radiographs[i].finding for i in members).most_common(1)[0][0]
        strata.setdefault(finding, []).append(members)
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


def contradict(findings: set[str]) -> bool:
    """Whether one image cannot have all these findings; pneumonia may be bacterial or viral."""
    return len(findings - {"pneumonia"}) > 1 or findings >= {"normal", "pneumonia"}


def settle_splits(catalog: Catalog, seed: int) -> Catalog:
    """Draws the splits that the folder does not give, and notes what was done."""
    if catalog.published_split:
        return catalog
    counts = Counter(r.split for r in catalog.radiographs)
    if not counts["train"] or not counts["test"]:
        given = "no split folders" if counts[""] else "no train and test folders both"
        note = f"{given}: all images split by patient 70/15/15 from seed {seed}"
        return _redraw(catalog, set(counts), FRACTIONS, seed, note)
    findings = {r.finding for r in catalog.radiographs if r.split == "train"}
    in_val = {r.finding for r in catalog.radiographs if r.split == "val"}
    if counts["val"] >= SMALLEST_VALIDATION and findings <= in_val:
        return catalog
    if not counts["val"]:
        why = "no val folder"
    elif counts["val"] < SMALLEST_VALIDATION:
        why = f"val has only {counts['val']} images"
    else:
        why = f"val has no {' or '.join(sorted(findings - in_val))} image"
    share = FRACTIONS["val"] / (FRACTIONS["train"] + FRACTIONS["val"])
    note = f"{why}: train and val pooled and split again by patient from seed {seed}"
    return _redraw(catalog, {"train", "val"}, {"train": 1 - share, "val": share}, seed, note)


def _redraw(
    catalog: Catalog, splits: set[str], fractions: dict[str, float], seed: int, note: str
) -> Catalog:
    rows = [i for i, r in enumerate(catalog.radiographs) if r.split in splits]
    drawn = split_by_patient(catalog.take(rows), fractions, seed=seed)
    radiographs = list(catalog.radiographs)
    for position, split in drawn.items():
        radiographs[rows[position]] = replace(radiographs[rows[position]], split=split)
    return replace(catalog, radiographs=tuple(radiographs), notes=(*catalog.notes, note))


def _groups(catalog: Catalog) -> np.ndarray:
    """Number of the group of each row: rows that share a patient or their bytes, transitively."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Rows on one side, patients and digests on the other; a component is a group.
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


def _catalog(source: Path, rows: Sequence[Row], notes: tuple[str, ...] = ()) -> Catalog:
    """The catalogue of rows as `reading` gives them."""
    for path, *_ in rows:
        check_utf8(path)
    # Threads, because hashing and reading both let go of the interpreter lock.
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, [row[0] for row in rows]))
    radiographs = tuple(
        Radiograph(str(path), finding, patient, split, digest)
        for (path, finding, patient, split), digest in zip(rows, digests, strict=True)
    )
    canonical = ["normal", "bacterial", "viral", "pneumonia"]

    def order(finding: str) -> tuple[int, str]:
        known = finding.lower() in canonical
        return canonical.index(finding.lower()) if known else len(canonical), finding

    findings = tuple(sorted({r.finding for r in radiographs}, key=order))
    return Catalog(str(source), radiographs, findings, notes)


def _positive_last(catalog: Catalog, positive: str) -> tuple[str, ...]:
    """The two findings, the positive one second."""
    if positive not in catalog.findings:
        raise UserError(
            f"{catalog.source} has no label '{positive}' for --positive; "
            f"it has {', '.join(catalog.findings[:MOST_LABELS])}"
        )
    if len(catalog.findings) != 2:
        raise UserError(
            f"--positive is for two labels; {catalog.source} has {len(catalog.findings)}"
        )
    return (*(f for f in catalog.findings if f != positive), positive)


def _as_class(finding: str, task: str) -> str:
    """The class of a finding in a task, or the finding itself where the task has none for it."""
    return "pneumonia" if task == "binary" and finding in ("bacterial", "viral") else finding


def _unsupported(unknown: list[str], task: str, classes: Sequence[str]) -> str:
    if task == "three_class" and unknown == ["pneumonia"]:
        return (
            "of some images only 'pneumonia' is known, not bacterial or viral: three_class needs "
            "folders BACTERIAL and VIRAL, or Kermany's file names; the task binary needs neither"
        )
    # One strange label makes a list one of the user's own, in which the usual ones are strange too.
    usual = {u: _as_class(FINDING_FOLDERS.get(u.lower(), u), task) for u in unknown}
    unknown = [u for u in unknown if usual[u] not in classes] or unknown
    named = ", ".join(f"'{u}'" for u in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    hint = "" if task == "labels" else "; for others there is train_classifier.py --task labels"
    return f"label {named} is none of the classes {', '.join(classes)}{hint}"


def _did_you_mean(path: Path) -> str:
    """A neighbour whose name is nearly that of a path that does not exist."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
