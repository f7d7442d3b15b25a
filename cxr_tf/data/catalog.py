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
import csv
import difflib
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.paths import expanded

SPLITS = ("train", "val", "test")

# Of tables of predictions, beside those of the classes.
COLUMNS = {"path", "patient", "label", "predicted", "novelty", "reason"}
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

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

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_FINDING_FOLDERS = {
    "normal": "normal",
    "healthy": "normal",
    "pneumonia": "pneumonia",
    "sick": "pneumonia",
    "bacterial": "bacterial",
    "bacteria": "bacterial",
    "viral": "viral",
    "virus": "viral",
}
# Kermany's names carry the cause and the patient: `person12_bacteria_46.jpeg`, `IM-0115-0001.jpeg`,
# `NORMAL2-IM-0437-0001.jpeg`; in version 3 of the data `VIRUS-1980593-0001.jpeg` and
# `NORMAL-28501-0001.jpeg`. The same number with another cause is another patient.
_KERMANY_PNEUMONIA = re.compile(
    r"(?:(?P<patient>person\d+)_(?P<cause>bacteria|virus)(?:_|$)"
    r"|(?P<cause3>bacteria|virus)-(?P<patient3>\d+)-\d+$)",
    re.IGNORECASE,
)
_KERMANY_NORMAL = re.compile(r"((?:NORMAL\d*-)?IM-\d+|NORMAL-\d+)(?:-|$)", re.IGNORECASE)
_PHANTOM = re.compile(r"(phantom\d+)_")


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
        return bool(self.radiographs) and all(_PHANTOM.match(Path(p).name) for p in self.paths)

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
        catalog = _read_folder(root)
    elif root.suffix.lower() == ".csv":
        catalog = _read_csv(root, as_written=task == "labels")
    elif root.suffix.lower() == ".npz":
        from cxr_tf.data import medmnist

        catalog = replace(_read_folder(medmnist.unpack(root)), published_split=True)
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


def _read_folder(root: Path) -> Catalog:
    split_folders = {
        d: _SPLIT_FOLDERS[d.name.lower()]
        for d in _folders(root)
        if d.name.lower() in _SPLIT_FOLDERS
    }
    finding_folders = [d for d in _folders(root) if d.name.lower() in _FINDING_FOLDERS]
    if split_folders and finding_folders:
        raise UserError(
            f"{root} has both split folders ({_names(split_folders)}) and class folders "
            f"({_names(finding_folders)}); keep one layout"
        )
    rows, others = [], Counter[str]()
    strangers = _strangers(root, split_folders) if split_folders else Counter[str]()
    for top, split in (split_folders or {root: ""}).items():
        known = _finding_folders(top)
        strangers += _strangers(top, known)
        for folder in known:
            for path in visible_files(folder):
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    others[path.suffix.lower() or "no suffix"] += 1
                    continue
                named, inner = label_of_folders(path, top)
                if inner and inner != split:
                    raise UserError(
                        f"{path} lies in a folder of a split inside of {folder.name}: put the "
                        "splits outside, as in train/NORMAL"
                    )
                rows.append((path, _finding(named, path), patient_of(path, root), split))
    if not rows:
        raise UserError(
            f"no .jpeg, .jpg or .png image in the class folders of {root}"
            + ("; convert DICOM with prepare_data.py --source dicom" if others[".dcm"] else "")
        )
    notes: tuple[str, ...] = ()
    if others:
        named = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        notes = (f"left out, being neither JPEG nor PNG: {named}",)
    if strangers:
        named = ", ".join(f"{count} in {folder}" for folder, count in sorted(strangers.items()))
        notes += (f"left out, being in no folder of a split or a class: {named}",)
    return _catalog(root, rows, notes)


def _strangers(top: Path, known: Iterable[Path]) -> Counter[str]:
    """How many images lie beside the folders that are known, or in others, by the folder's name."""
    # Beside phantoms lie the masks of their lesions.
    others = [d for d in _folders(top) if d not in set(known) and d.name != "masks"]
    places = [(d.name, visible_files(d)) for d in others]
    places.append((f"{top.name} itself", [p for p in top.iterdir() if p.is_file()]))
    return Counter(
        name for name, files in places for p in files if p.suffix.lower() in IMAGE_SUFFIXES
    )


def _read_csv(file: Path, *, as_written: bool) -> Catalog:
    listed = read_list(file)
    # The words of the folders mean the same here, but only where all labels are such words.
    named = not as_written and all(row.label.lower() in _FINDING_FOLDERS for row in listed)
    rows = []
    for row in listed:
        if row.path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{row.where}: neither .jpeg, .jpg nor .png: {row.path}; "
                "convert DICOM with prepare_data.py --source dicom"
            )
        finding = row.label
        if named:
            finding = _finding(_FINDING_FOLDERS[finding.lower()], row.path)
        rows.append(
            (row.path, finding, row.patient or patient_of(row.path, file.parent), row.split)
        )
    return _catalog(file, rows)


@dataclass(frozen=True)
class Listed:
    """One line of a list; patient and split are empty where it does not tell."""

    where: str
    path: Path
    label: str
    patient: str
    split: str


def read_list(file: Path) -> list[Listed]:
    """A .csv with the columns path (relative to it) and label, optionally patient and split.

    Raises UserError that names the line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            begin, header = 0, lines.readline()
            if header.lower().startswith("sep="):  # which Excel takes for itself
                begin, header = lines.tell(), lines.readline()
            # Spreadsheets of half the world write semicolons.
            delimiter = max(",;\t", key=header.count)
            lines.seek(begin)
            reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
            columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            table = [
                (reader.line_num, {k: (v or "").strip() for k, v in row.items() if k in columns})
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no list of comma-separated values in UTF-8: {error}") from None
    if missing := {"path", "label"} - set(columns):
        raise UserError(
            f"{file} has no column {' and '.join(sorted(missing))}; "
            f"its first line names {', '.join(columns) or 'nothing'}"
        )
    for name in ("path", "label", "patient", "split"):
        if columns.count(name) > 1:
            raise UserError(f"{file} has more than one column {name}: leave one")
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
            raise UserError(f"{where}: {row['path']} stands in line {seen[path]} already")
        if not path.is_file():
            raise UserError(f"{where}: no such file: {path}")
        seen[path] = number
        split = row.get("split", "").lower()
        if some_split and split not in _SPLIT_FOLDERS:
            raise UserError(f"{where}: split is '{split}'; it must be train, val or test")
        split = _SPLIT_FOLDERS[split] if split else ""
        listed.append(Listed(where, path, row["label"], row.get("patient", ""), split))
    return listed


def label_of_folders(path: Path, root: Path) -> tuple[str, str]:
    """(finding, split) that the folders from `root` to a file tell of; empty where none does.

    Raises UserError where they contradict each other.
    """
    parts = [part.lower() for part in path.relative_to(root).parts[:-1]]
    told = {_FINDING_FOLDERS[part] for part in parts if part in _FINDING_FOLDERS}
    if len(told) == 2 and "normal" not in told:
        told.discard("pneumonia")  # PNEUMONIA/VIRUS tells the cause
    splits = {_SPLIT_FOLDERS[part] for part in parts if part in _SPLIT_FOLDERS}
    for names in (told, splits):
        if len(names) > 1:
            raise UserError(
                f"{path} lies in folders of {' and '.join(sorted(names))}: move it where it belongs"
            )
    return next(iter(told), ""), next(iter(splits), "")


def _catalog(
    source: Path, rows: Sequence[tuple[Path, str, str, str]], notes: tuple[str, ...] = ()
) -> Catalog:
    """The catalogue of rows of (path, finding, patient, split)."""
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


def patient_of(path: Path, root: Path) -> str:
    """The patient a file name tells of; where it tells none, the image is its own patient."""
    if match := _KERMANY_PNEUMONIA.match(path.stem):
        number, cause = match["patient"] or match["patient3"], match["cause"] or match["cause3"]
        return f"{number}_{cause}".lower()
    if match := _KERMANY_NORMAL.match(path.stem):
        # Viewers name the images of every export IM-0001-0001: there a folder tells the patient.
        inside = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
        below = itertools.takewhile(
            lambda part: part.lower() not in (_SPLIT_FOLDERS | _FINDING_FOLDERS), reversed(inside)
        )
        return "/".join([*reversed([*below]), match[1].upper()])
    if match := _PHANTOM.match(path.name):
        return match[1]
    # With the folders, because `NORMAL/1.png` and `VIRAL/1.png` are two people; from the root on,
    # because a folder that is moved holds the same people.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _finding(named: str, path: Path) -> str:
    """What a folder or a list calls it, or the cause where Kermany's file name tells that."""
    if named == "pneumonia" and (match := _KERMANY_PNEUMONIA.match(path.stem)):
        cause = match["cause"] or match["cause3"]
        return {"bacteria": "bacterial", "virus": "viral"}[cause.lower()]
    return named


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
    usual = {u: _as_class(_FINDING_FOLDERS.get(u.lower(), u), task) for u in unknown}
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


def _finding_folders(top: Path) -> list[Path]:
    folders = _folders(top)
    known = [d for d in folders if d.name.lower() in _FINDING_FOLDERS]
    if known:
        return known
    # One level too high is the usual slip: archives unpack to a folder in a folder.
    inner = [
        d
        for d in folders
        if any(e.name.lower() in {**_SPLIT_FOLDERS, **_FINDING_FOLDERS} for e in _folders(d))
    ]
    hint = f"; did you mean {inner[0]}?" if inner else ""
    raise UserError(
        f"no class folder in {top}: expected NORMAL and PNEUMONIA, or NORMAL, BACTERIAL and VIRAL"
        f"{f', found {_names(folders)}' if folders else ''}{hint}"
    )


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def visible_files(folder: Path) -> list[Path]:
    """Files at any depth; nothing hidden: Kermany's archive carries ._ files of another system."""
    found, entered = [], set()
    # Links to folders are followed: that is how a collection on another disk is put together.
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in entered:  # a link to a folder around it
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        found += [Path(here, name) for name in files if not name.startswith(".")]
    if lost := sorted(p for p in found if p.is_symlink() and not p.exists()):
        raise UserError(f"{lost[0]}: a link that leads nowhere; is a disk missing?")
    return sorted(p for p in found if p.is_file())


def _stop(error: OSError) -> None:
    """A folder that cannot be read must not be taken for an empty one."""
    raise UserError(f"{error.filename}: {error.strerror}")


def check_utf8(path: Path) -> None:
    """Raises UserError for a name that is no UTF-8: no table or report could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"{shown}: the file's name is not UTF-8, as in archives of old systems; rename it"
        ) from None


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(d.name for d in folders)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
