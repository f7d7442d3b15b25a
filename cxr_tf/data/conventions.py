"""What folders, lists and file names tell of radiographs, before any image is opened.

    rows, notes = read_folder(Path("chest_xray"))       # (path, finding, patient, split) of each
    rows = rows_of_list(Path("catalogue.csv"), as_written=False)

A finding or a split that nothing tells of is an empty string.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cxr_tf.errors import UserError

# Path, finding, patient, split.
Row = tuple[Path, str, str, str]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

FINDING_FOLDERS = {
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

PHANTOM_NAME = re.compile(r"(phantom\d+)_")


def read_folder(root: Path) -> tuple[list[Row], tuple[str, ...]]:
    """The images of a folder, and notes on what was left out of it.

    Raises UserError where there is none, and where folders contradict each other.
    """
    split_folders = {
        d: SPLIT_FOLDERS[d.name.lower()] for d in _folders(root) if d.name.lower() in SPLIT_FOLDERS
    }
    finding_folders = [d for d in _folders(root) if d.name.lower() in FINDING_FOLDERS]
    if split_folders and finding_folders:
        raise UserError(
            f"{root} has both split folders ({_names(split_folders)}) and class folders "
            f"({_names(finding_folders)}); keep one layout"
        )
    rows: list[Row] = []
    others = Counter[str]()
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
                rows.append((path, finding_of(named, path), patient_of(path, root), split))
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
    return rows, notes


def _strangers(top: Path, known: Iterable[Path]) -> Counter[str]:
    """How many images lie beside the folders that are known, or in others, by the folder's name."""
    # Beside phantoms lie the masks of their lesions.
    others = [d for d in _folders(top) if d not in set(known) and d.name != "masks"]
    places = [(d.name, visible_files(d)) for d in others]
    loose = [p for p in top.iterdir() if p.is_file() and not p.name.startswith(".")]
    places.append((f"{top.resolve().name} itself", loose))
    return Counter(
        name for name, files in places for p in files if p.suffix.lower() in IMAGE_SUFFIXES
    )


def label_of_folders(path: Path, root: Path) -> tuple[str, str]:
    """(finding, split) that the folders from `root` to a file tell of; empty where none does.

    Raises UserError where they contradict each other.
    """
    parts = [part.lower() for part in path.relative_to(root).parts[:-1]]
    told = {FINDING_FOLDERS[part] for part in parts if part in FINDING_FOLDERS}
    if len(told) == 2 and "normal" not in told:
        told.discard("pneumonia")  # PNEUMONIA/VIRUS tells the cause
    splits = {SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS}
    for names in (told, splits):
        if len(names) > 1:
            raise UserError(
                f"{path} lies in folders of {' and '.join(sorted(names))}: move it where it belongs"
            )
    return next(iter(told), ""), next(iter(splits), "")


def patient_of(path: Path, root: Path) -> str:
    """The patient a file name tells of; where it tells none, the image is its own patient."""
    if match := _KERMANY_PNEUMONIA.match(path.stem):
        number, cause = match["patient"] or match["patient3"], match["cause"] or match["cause3"]
        return f"{number}_{cause}".lower()
    if match := _KERMANY_NORMAL.match(path.stem):
        # Viewers name the images of every export IM-0001-0001: there a folder tells the patient.
        inside = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
        below = itertools.takewhile(
            lambda part: part.lower() not in (SPLIT_FOLDERS | FINDING_FOLDERS), reversed(inside)
        )
        return "/".join([*reversed([*below]), match[1].upper()])
    if match := PHANTOM_NAME.match(path.name):
        return match[1]
    # With the folders, because `NORMAL/1.png` and `VIRAL/1.png` are two people; from the root on,
    # because a folder that is moved holds the same people.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def finding_of(named: str, path: Path) -> str:
    """What a folder or a list calls it, or the cause where Kermany's file name tells that."""
    if named == "pneumonia" and (match := _KERMANY_PNEUMONIA.match(path.stem)):
        cause = match["cause"] or match["cause3"]
        return {"bacteria": "bacterial", "virus": "viral"}[cause.lower()]
    return named


def _finding_folders(top: Path) -> list[Path]:
    folders = _folders(top)
    known = [d for d in folders if d.name.lower() in FINDING_FOLDERS]
    if known:
        return known
    # One level too high is the usual slip: archives unpack to a folder in a folder.
    inner = [
        d
        for d in folders
        if any(e.name.lower() in {**SPLIT_FOLDERS, **FINDING_FOLDERS} for e in _folders(d))
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


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(d.name for d in folders)
