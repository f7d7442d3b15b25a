"""The catalogue of a data set: path, finding, patient and split of each radiograph.

    catalog = open_catalog("chest_xray", seed=0)
    print(describe(catalog))
    check(catalog, task="binary")          # UserError if it must not be trained on

A catalogue is read from a folder with or without split folders, a list, or MedMNIST's array file:

    chest_xray/train|val|test/NORMAL|PNEUMONIA/*.jpeg      as Kermany et al. 2018 published it
    chest_xray/train|val|test/NORMAL|BACTERIAL|VIRAL/*.png
    chest_xray/NORMAL|PNEUMONIA/*.jpeg                     split by patient, 70/15/15
    catalogue.csv                                          path, label[, patient][, split]
    pneumoniamnist_64.npz                                  with its published split

The rows are complete before any image is decoded, so that leakage between splits stops a run at
once, not after an hour.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.data.reading.conventions import FINDING_FOLDERS, PHANTOM_NAME
from cxr_tf.errors import UserError

SPLITS = ("train", "val", "test")

# Columns of prediction tables other than the classes; no class may have one of these names.
RESERVED_COLUMNS = {
    *("path", "patient", "label", "predicted", "prediction_set", "novelty", "reason"),
}

# Classes of the named tasks in the order of the model's outputs; `normal` is first. The third task,
# `labels`, uses the labels of the catalogue unchanged.
TASKS: dict[str, tuple[str, ...]] = {
    "binary": ("normal", "pneumonia"),
    "three_class": ("normal", "bacterial", "viral"),
}

# A column with more labels than this is more likely to contain numbers or names.
MAX_LABELS = 20


@dataclass(frozen=True)
class Radiograph:
    """One image file and its metadata.

    `finding` is normal, bacterial, viral, or pneumonia if the cause is unknown; with custom labels
    it is the label. `split` is train, val, test, or empty if none has been assigned. `digest` is
    the BLAKE2 hash of the file's bytes (hex, 128 bits), which identifies identical files. `groups`
    are (column, value) pairs of a list, such as ("sex", "F").
    """

    path: str
    finding: str
    patient: str
    split: str
    digest: str
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Catalog:
    """Radiographs in a fixed order, their source, and how their splits were obtained.

    `findings` are the labels that occur, in the order of the classes of the task `labels`.
    `published_split` is True for the official split of a benchmark, which is kept unchanged,
    leakage included, so that results can be compared with published ones. `warnings` are those of
    `cxr_tf.data.acquisition.audit.audited`.
    """

    source: str
    radiographs: tuple[Radiograph, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    published_split: bool = False
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.radiographs)

    @property
    def paths(self) -> list[str]:
        """File paths, in row order."""
        return [r.path for r in self.radiographs]

    @property
    def patients(self) -> list[str]:
        """Patient of each row, in row order."""
        return [r.patient for r in self.radiographs]

    @property
    def without_patient(self) -> int:
        """Number of rows without a known patient; each counts as a patient of its own."""
        return sum(r.patient.endswith(Path(r.path).name) for r in self.radiographs)

    @property
    def is_phantom(self) -> bool:
        """Whether all images are phantoms; if so, reports must say so."""
        return bool(self.radiographs) and all(PHANTOM_NAME.match(Path(p).name) for p in self.paths)

    def group_columns(self) -> dict[str, list[str]]:
        """Return the values of each group column, "" for rows without one."""
        names = dict.fromkeys(name for r in self.radiographs for name, _ in r.groups)
        return {name: [dict(r.groups).get(name, "") for r in self.radiographs] for name in names}

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of a split, int64 [n]."""
        return np.array([i for i, r in enumerate(self.radiographs) if r.split == split], np.int64)

    def about(self) -> dict[str, Any]:
        """Return a model card's entries about the data: the folder's name, but not its path."""
        return {
            "data": Path(self.source).resolve().name,
            "images": {split: len(self.rows(split)) for split in SPLITS},
            "images_by_finding": {
                split: dict(Counter(self.radiographs[i].finding for i in self.rows(split)))
                for split in SPLITS
            },
            "warnings": list(self.warnings),
            "data_fingerprint": self.fingerprint(),
            "data_is_phantom": self.is_phantom,
        }

    def training_digests(self) -> set[str]:
        """Return the digests of the files used for training or model selection."""
        return {r.digest for r in self.radiographs if r.split in ("train", "val")}

    def take(self, rows: Iterable[int]) -> "Catalog":
        """Return the catalogue of these rows, in this order."""
        return replace(self, radiographs=tuple(self.radiographs[int(i)] for i in rows))

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names of a task, in the order of the model's outputs."""
        return self.findings if task == "labels" else task_classes(task)

    def labels(self, task: str, classes: Sequence[str] = ()) -> np.ndarray:
        """Return the class index of each row for a task, int64 [N].

        `classes` are those of a trained model, if they differ from this catalogue's. Raises
        UserError for a finding that belongs to none of the classes.
        """
        classes = list(classes or self.classes(task))
        named = [class_of(r.finding, task) for r in self.radiographs]
        if unknown := sorted(set(named) - set(classes)):
            raise UserError(f"{self.source}: {_unsupported(unknown, task, classes)}")
        return np.array([classes.index(name) for name in named], np.int64)

    def fingerprint(self) -> str:
        """Return a hash over finding, patient, split and content of all rows.

        Paths are not included, so that a moved folder keeps its fingerprint.
        """
        rows = sorted(f"{r.digest} {r.finding} {r.patient} {r.split}" for r in self.radiographs)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=16).hexdigest()


def task_classes(task: str) -> tuple[str, ...]:
    """Return the class names of a named task, in the order of the model's outputs."""
    if task not in TASKS:
        raise UserError(f"unknown task '{task}'; known: {', '.join(TASKS)}, labels")
    return TASKS[task]


def contradictory(findings: set[str]) -> bool:
    """Return whether findings exclude each other; pneumonia may be bacterial or viral."""
    return len(findings - {"pneumonia"}) > 1 or findings >= {"normal", "pneumonia"}


def positive_last(catalog: Catalog, positive: str) -> tuple[str, ...]:
    """Return the two findings, the positive one second."""
    if positive not in catalog.findings:
        raise UserError(
            f"{catalog.source} has no label '{positive}' for --positive; "
            f"it has {', '.join(catalog.findings[:MAX_LABELS])}"
        )
    if len(catalog.findings) != 2:
        raise UserError(
            f"--positive needs exactly two labels; {catalog.source} has {len(catalog.findings)}"
        )
    return (*(f for f in catalog.findings if f != positive), positive)


def class_of(finding: str, task: str) -> str:
    """Return the class of a finding in a task, or the finding itself if it has none."""
    return "pneumonia" if task == "binary" and finding in ("bacterial", "viral") else finding


def _unsupported(unknown: list[str], task: str, classes: Sequence[str]) -> str:
    if task == "three_class" and unknown == ["pneumonia"]:
        return (
            "some images are labelled 'pneumonia', neither bacterial nor viral: three_class needs "
            "folders (in a list: labels) BACTERIAL and VIRAL, or Kermany's file names; the task "
            "binary needs neither"
        )
    # A single unknown label makes all labels of a list custom ones, even the standard words: the
    # message names only those that are not standard.
    standard = {u: class_of(FINDING_FOLDERS.get(u.lower(), u), task) for u in unknown}
    unknown = [u for u in unknown if standard[u] not in classes] or unknown
    named = ", ".join(f"'{u}'" for u in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    hint = "" if task == "labels" else "; for custom labels use train_classifier.py --task labels"
    subject = f"label {named} is" if len(unknown) == 1 else f"labels {named} are"
    return f"{subject} not among the classes {', '.join(classes)}{hint}"


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the words that agree with it: "1 image is", "3 images are"."""
    return f"{number} {one if number == 1 else many}"


def short_path(path: str) -> str:
    """Return the last three parts of a path."""
    return "/".join(Path(path).parts[-3:])
