"""One row per radiograph: path, finding, patient, split.

    catalog = open_catalog("chest_xray", seed=0)
    print(describe(catalog))
    check(catalog, task="binary")          # UserError on what must not be trained on

Reads a folder, with or without split folders:

    chest_xray/train|val|test/NORMAL|PNEUMONIA/*.jpeg      as Kermany et al. 2018 published it
    chest_xray/train|val|test/NORMAL|BACTERIAL|VIRAL/*.png
    chest_xray/NORMAL|PNEUMONIA/*.jpeg                     split here by patient, 70/15/15

The rows are settled before any image is decoded: a split that leaks must stop a run before it has
cost an hour.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cxr_tf.errors import UserError

SPLITS = ("train", "val", "test")
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

# A validation split below this cannot rank models or place a threshold: the published Kermany `val`
# has 16 images.
SMALLEST_VALIDATION = 100

# What `--data phantom` is: enough for a validation split above that.
PHANTOM_COUNT = 800
PHANTOM_SIZE = 128

# What each task calls its classes, in the order of the model's outputs. `normal` is always first.
TASKS: dict[str, tuple[str, ...]] = {
    "binary": ("normal", "pneumonia"),
    "three_class": ("normal", "bacterial", "viral"),
}

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
# `NORMAL2-IM-0437-0001.jpeg`. The same number with another cause is another patient.
_KERMANY_PNEUMONIA = re.compile(r"(person\d+)_(bacteria|virus)(?:_|$)", re.IGNORECASE)
_KERMANY_NORMAL = re.compile(r"((?:NORMAL\d*-)?IM-\d+)(?:-|$)", re.IGNORECASE)
_PHANTOM = re.compile(r"(phantom\d+)_")


@dataclass(frozen=True)
class Radiograph:
    """One image file and what is known of it.

    `finding` is normal, bacterial, viral, or pneumonia where the cause is not told. `split` is
    train, val, test, or empty where it is not settled yet. `digest` is the BLAKE2 hash of the
    file's bytes (hex, 128 bits), by which identical images are found.
    """

    path: str
    finding: str
    patient: str
    split: str
    digest: str


@dataclass(frozen=True)
class Catalog:
    """Radiographs in a fixed order, where they come from, and what was done to their splits."""

    source: str
    radiographs: tuple[Radiograph, ...]
    notes: tuple[str, ...] = ()

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
    def is_phantom(self) -> bool:
        """Whether the images are synthetic: reports must say so."""
        return bool(self.radiographs) and all(_PHANTOM.match(Path(p).name) for p in self.paths)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, int64 [n]."""
        return np.array([i for i, r in enumerate(self.radiographs) if r.split == split], np.int64)

    def take(self, rows: Iterable[int]) -> "Catalog":
        """The catalogue of these rows alone, in this order."""
        return replace(self, radiographs=tuple(self.radiographs[int(i)] for i in rows))

    def labels(self, task: str) -> np.ndarray:
        """Class index of each row for a task, int64 [n].

        Raises UserError where a finding cannot be named in the task's classes.
        """
        classes = task_classes(task)
        try:
            return np.array([classes.index(_as_class(r.finding, task)) for r in self.radiographs])
        except ValueError:
            raise UserError(
                f"{self.source} says only 'pneumonia' of some images, not bacterial or viral: "
                "three_class needs folders BACTERIAL and VIRAL, or Kermany's file names; "
                "else use --task binary"
            ) from None

    def fingerprint(self) -> str:
        """Hash over finding, patient, split and content of all rows: equal data, equal hash.

        Paths do not enter, so that a moved folder is the same data.
        """
        rows = sorted(f"{r.digest} {r.finding} {r.patient} {r.split}" for r in self.radiographs)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=16).hexdigest()


def task_classes(task: str) -> tuple[str, ...]:
    """Class names of a task, in the order of the model's outputs."""
    if task not in TASKS:
        raise UserError(f"unknown task '{task}'; known: {', '.join(TASKS)}")
    return TASKS[task]


def open_catalog(source: str, *, seed: int = 0, resplit: bool = True) -> Catalog:
    """Reads a folder of radiographs and settles the splits.

    `resplit=False` leaves the folder's own splits as they are (empty where it has none), which is
    what scoring a finished model needs. Raises UserError where there is nothing to read.
    """
    if source == "phantom":
        source = str(phantom_folder())
    root = Path(source).expanduser()
    if not root.exists():
        raise UserError(f"no such folder: {source}")
    if not root.is_dir():
        raise UserError(f"not a folder: {source}")
    split_folders = {
        d: _SPLIT_FOLDERS[d.name.lower()]
        for d in _folders(root)
        if d.name.lower() in _SPLIT_FOLDERS
    }
    finding_folders = [d for d in _folders(root) if d.name.lower() in _FINDING_FOLDERS]
    if split_folders and finding_folders:
        raise UserError(
            f"{source} has both split folders ({_names(split_folders)}) and class folders "
            f"({_names(finding_folders)}); keep one layout"
        )
    found = [
        (path, folder.name, split)
        for top, split in (split_folders or {root: ""}).items()
        for folder in _finding_folders(top, source)
        for path in _images(folder)
    ]
    if not found:
        raise UserError(f"no .jpeg, .jpg or .png image in the class folders of {source}")
    radiographs = _describe_files(found)
    catalog = Catalog(source=str(source), radiographs=radiographs)
    return _settle_splits(catalog, seed) if resplit else catalog


def phantom_folder() -> Path:
    """The phantoms that `--data phantom` stands for, written to `data/` on first use."""
    from cxr_tf.data import phantom

    folder = Path("data") / f"phantom-v{phantom.GENERATOR_VERSION}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        phantom.write_phantoms(folder, count=PHANTOM_COUNT, size=PHANTOM_SIZE, seed=0)
    return folder


def check(catalog: Catalog, *, task: str, allow_leakage: bool = False) -> None:
    """Stops a run that could not be trusted.

    Raises UserError for a patient or an identical image in two splits (unless `allow_leakage`), for
    a split without images, for a class without images in a split, and for a task that the findings
    do not support.
    """
    labels = catalog.labels(task)
    leaks = leakage(catalog)
    if leaks and not allow_leakage:
        raise UserError(
            f"{catalog.source}: {leaks[0]}"
            + (f" (and {len(leaks) - 1} more such)" if len(leaks) > 1 else "")
            + "; mend the splits, or go on all the same with --allow-leakage"
        )
    for split in SPLITS:
        rows = catalog.rows(split)
        for index, name in enumerate(task_classes(task)):
            if not np.any(labels[rows] == index):
                raise UserError(
                    f"{catalog.source}: no '{name}' image in the {split} split "
                    f"({len(rows)} images); {task} needs every class in every split"
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
    """What the catalogue holds, as a table for the screen: images and patients, class by split."""
    findings = [f for f in ("normal", "bacterial", "viral", "pneumonia") if _count(catalog, f)]
    splits = [s for s in (*SPLITS, "") if any(r.split == s for r in catalog.radiographs)]
    lines = [f"{catalog.source}: {len(catalog)} images, {len(set(catalog.patients))} patients"]
    if catalog.is_phantom:
        lines.append("  synthetic phantoms, not radiographs of people")
    lines.append("  split     " + "".join(f"{f:>11}" for f in findings) + "     images   patients")
    for split in splits:
        rows = [r for r in catalog.radiographs if r.split == split]
        counts = Counter(r.finding for r in rows)
        lines.append(
            f"  {split or '(none)':<10}"
            + "".join(f"{counts[f]:>11}" for f in findings)
            + f"{len(rows):>11}{len({r.patient for r in rows}):>11}"
        )
    duplicates = len(catalog) - len({r.digest for r in catalog.radiographs})
    if duplicates:
        lines.append(f"  {duplicates} images are byte-identical copies of another")
    return "\n".join([*lines, *(f"  note: {n}" for n in catalog.notes)])


def split_by_patient(catalog: Catalog, fractions: dict[str, float], *, seed: int) -> dict[int, str]:
    """Draws splits for all rows: stratified by finding, whole patients, identical images together.

    Returns {row: split}. Within each finding the patients are shuffled and dealt, one by one, to
    the split that lacks most of its share, so that shares hold for small catalogues too.
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
        for index in rng.permutation(len(members_of)):
            split = max(missing, key=lambda s: (missing[s], s))
            missing[split] -= len(members_of[index])
            drawn.update(dict.fromkeys(members_of[index], split))
    return drawn


def _settle_splits(catalog: Catalog, seed: int) -> Catalog:
    """Draws the splits that the folder does not give, and notes what was done."""
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


def _describe_files(found: Sequence[tuple[Path, str, str]]) -> tuple[Radiograph, ...]:
    # Threads, because hashing and reading both let go of the interpreter lock.
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, [path for path, _, _ in found]))
    return tuple(
        Radiograph(
            path=str(path),
            finding=_finding(_FINDING_FOLDERS[folder.lower()], path.name),
            patient=patient_of(path),
            split=split,
            digest=digest,
        )
        for (path, folder, split), digest in zip(found, digests, strict=True)
    )


def patient_of(path: Path) -> str:
    """The patient a file name tells of; where it tells none, the image is its own patient."""
    if match := _KERMANY_PNEUMONIA.match(path.stem):
        return f"{match[1]}_{match[2]}".lower()
    if match := _KERMANY_NORMAL.match(path.stem):
        return match[1].upper()
    if match := _PHANTOM.match(path.name):
        return match[1]
    # With the folders, because `NORMAL/1.png` and `VIRAL/1.png` are two people.
    return "/".join(path.parts[-3:])


def _finding(folder_finding: str, name: str) -> str:
    if folder_finding == "pneumonia" and (match := _KERMANY_PNEUMONIA.match(name)):
        return {"bacteria": "bacterial", "virus": "viral"}[match[2].lower()]
    return folder_finding


def _as_class(finding: str, task: str) -> str:
    return "pneumonia" if task == "binary" and finding != "normal" else finding


def _finding_folders(top: Path, source: str) -> list[Path]:
    folders = _folders(top)
    known = [d for d in folders if d.name.lower() in _FINDING_FOLDERS]
    if known:
        return known
    inner = [d for d in folders if any(e.name.lower() in _SPLIT_FOLDERS for e in _folders(d))]
    hint = f"; did you mean {inner[0]}?" if inner else ""
    raise UserError(
        f"no class folder in {top}: expected NORMAL and PNEUMONIA, or NORMAL, BACTERIAL and VIRAL"
        f"{f', found {_names(folders)}' if folders else ''}{hint}"
    )


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def _images(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        # The archive that Kermany's data come in carries ._ files of another system.
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _count(catalog: Catalog, finding: str) -> int:
    return sum(r.finding == finding for r in catalog.radiographs)


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(d.name for d in folders)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
