"""Read finding, patient and split of a radiograph from the names of folders and files.

    rows, notes = read_folder(Path("chest_xray"))       # a row: (path, finding, patient, split)

No image is opened. An unknown finding or split is an empty string.
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

# Folders of segmentation masks, which are next to the radiographs in several public data sets.
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "lung_masks", "lung masks"}

# Kermany's file names contain the patient and, for pneumonia, the cause: in version 2 of the data
# `person12_bacteria_46.jpeg`, `IM-0115-0001.jpeg` and `NORMAL2-IM-0437-0001.jpeg`; in version 3
# `VIRUS-1980593-0001.jpeg` and `NORMAL-28501-0001.jpeg`. The same number with another cause denotes
# another patient.
_KERMANY_PNEUMONIA = re.compile(
    r"(?:(?P<patient>person\d+)_(?P<cause>bacteria|virus)(?:_|$)"
    r"|(?P<cause3>bacteria|virus)-(?P<patient3>\d+)-\d+$)",
    re.IGNORECASE,
)

_KERMANY_NORMAL = re.compile(r"((?:NORMAL\d*-)?IM-\d+|NORMAL-\d+)(?:-|$)", re.IGNORECASE)

PHANTOM_NAME = re.compile(r"(phantom\d+)_")


def read_folder(root: Path, *, any_classes: bool = False) -> tuple[list[Row], tuple[str, ...]]:
    """Return the images of a folder, and notes on what was left out.

    any_classes: if a class folder has a name that is not in `FINDING_FOLDERS`, the names of all
    class folders are the findings. Raises UserError if there is no image, or if folders
    contradict each other.
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
    tops = split_folders or {root: ""}
    custom = any_classes and _has_other_classes(tops)
    rows: list[Row] = []
    other_suffixes, masks, inner_folders = Counter[str](), Counter[str](), Counter[str]()
    unrecognized = _unrecognized_folders(root, split_folders) if split_folders else Counter[str]()
    for top, split in tops.items():
        known = _class_folders(top) if custom else _finding_folders(top)
        unrecognized += _unrecognized_folders(top, known)
        for folder in known:
            for path in visible_files(folder):
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    other_suffixes[path.suffix.lower() or "no suffix"] += 1
                    continue
                inside = path.relative_to(folder).parts[:-1]
                if any(part.lower() in MASK_FOLDERS for part in inside):
                    masks["/".join((folder.name, *inside))] += 1
                    continue
                if inside:
                    inner_folders["/".join((folder.name, *inside))] += 1
                if custom:
                    rows.append((path, folder.name, patient_of(path, root), split))
                    continue
                named, inner = label_of_folders(path, top)
                if inner and inner != split:
                    raise UserError(
                        f"{path} is in a split folder inside {folder.name}: put class folders "
                        "inside split folders, as in train/NORMAL"
                    )
                rows.append((path, finding_of(named, path), patient_of(path, root), split))
    if not rows:
        raise UserError(
            f"no .jpeg, .jpg or .png image in the class folders of {root}"
            + (
                "; convert DICOM with prepare_data.py --source dicom"
                if other_suffixes[".dcm"]
                else ""
            )
        )
    notes = [
        f"{text}: {_counts(counts)}"
        for text, counts in (
            ("left out, neither JPEG nor PNG", other_suffixes),
            ("left out, in mask folders", masks),
            ("left out, not in a split or class folder", unrecognized),
            ("read from sub-folders", inner_folders),
        )
        if counts
    ]
    return rows, tuple(notes)


def _counts(counts: Counter[str], most: int = 6) -> str:
    """Format counts by folder or suffix, the first few by name."""
    named = [
        f"{n} in {k}" if not k.startswith((".", "no suffix")) else f"{n} {k}"
        for k, n in sorted(counts.items())[:most]
    ]
    rest = len(counts) - most
    kind = "file type" if next(iter(counts)).startswith((".", "no suffix")) else "folder"
    others = f" and {rest} other {kind}{'s' if rest > 1 else ''}" if rest > 0 else ""
    return ", ".join(named) + others


def _class_folders(top: Path) -> list[Path]:
    """Return the folders with images, whatever their names, except for masks."""
    return [
        d
        for d in _folders(top)
        if d.name.lower() not in MASK_FOLDERS
        and any(p.suffix.lower() in IMAGE_SUFFIXES for p in visible_files(d))
    ]


def _has_other_classes(tops: Iterable[Path]) -> bool:
    """Return whether a class folder has a name that is not in `FINDING_FOLDERS`."""
    return any(d.name.lower() not in FINDING_FOLDERS for top in tops for d in _class_folders(top))


def _unrecognized_folders(top: Path, known: Iterable[Path]) -> Counter[str]:
    """Count the images in `top` itself and in folders other than `known`, by folder name."""
    # The lesion masks of phantoms are next to the splits.
    others = [
        d for d in _folders(top) if d not in set(known) and d.name.lower() not in MASK_FOLDERS
    ]
    files_of = [(d.name, visible_files(d)) for d in others]
    loose = [p for p in top.iterdir() if p.is_file() and not p.name.startswith(".")]
    files_of.append((f"{top.resolve().name} itself", loose))
    return Counter(
        name for name, files in files_of for p in files if p.suffix.lower() in IMAGE_SUFFIXES
    )


def label_of_folders(path: Path, root: Path) -> tuple[str, str]:
    """Return (finding, split) as given by the folders between `root` and a file, empty if unknown.

    Raises UserError if the folders contradict each other.
    """
    parts = [part.lower() for part in path.relative_to(root).parts[:-1]]
    findings = {FINDING_FOLDERS[part] for part in parts if part in FINDING_FOLDERS}
    if len(findings) == 2 and "normal" not in findings:
        findings.discard("pneumonia")  # PNEUMONIA/VIRUS: the cause is more specific
    splits = {SPLIT_FOLDERS[part] for part in parts if part in SPLIT_FOLDERS}
    for names in (findings, splits):
        if len(names) > 1:
            raise UserError(
                f"{path} is in folders of both {' and '.join(sorted(names))}: move it to one"
            )
    return next(iter(findings), ""), next(iter(splits), "")


def patient_of(path: Path, root: Path) -> str:
    """Return the patient named by a file name; without one, the image is a patient of its own."""
    if match := _KERMANY_PNEUMONIA.match(path.stem):
        number, cause = match["patient"] or match["patient3"], match["cause"] or match["cause3"]
        return f"{number}_{cause}".lower()
    if match := _KERMANY_NORMAL.match(path.stem):
        # DICOM viewers call the images of any export IM-0001-0001: the folder names the patient.
        inside = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
        below = itertools.takewhile(
            lambda part: part.lower() not in (SPLIT_FOLDERS | FINDING_FOLDERS), reversed(inside)
        )
        return "/".join([*reversed([*below]), match[1].upper()])
    if match := PHANTOM_NAME.match(path.name):
        return match[1]
    # With the folders, because `NORMAL/1.png` and `VIRAL/1.png` are two people; relative to the
    # root, so that a moved folder keeps its patients.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def finding_of(named: str, path: Path) -> str:
    """Return the finding that a folder or list names, or the cause in Kermany's file names."""
    if named == "pneumonia" and (match := _KERMANY_PNEUMONIA.match(path.stem)):
        cause = match["cause"] or match["cause3"]
        return {"bacteria": "bacterial", "virus": "viral"}[cause.lower()]
    return named


def _finding_folders(top: Path) -> list[Path]:
    folders = _folders(top)
    known = [d for d in folders if d.name.lower() in FINDING_FOLDERS]
    if known:
        return known
    # Archives often unpack to a folder inside a folder.
    inner = [
        d
        for d in folders
        if any(e.name.lower() in {**SPLIT_FOLDERS, **FINDING_FOLDERS} for e in _folders(d))
    ]
    if inner:
        hint = f"; did you mean {inner[0]}?"
    else:
        hint = "; to use other names as labels, pass --task labels" if len(folders) > 1 else ""
    raise UserError(
        f"no class folder in {top}: expected NORMAL and PNEUMONIA, or NORMAL, BACTERIAL and VIRAL"
        f"{f', found {_names(folders)}' if folders else ''}{hint}"
    )


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def visible_files(folder: Path) -> list[Path]:
    """Return the files at any depth, without hidden ones such as macOS's ._ files."""
    files_found, entered = [], set()
    # Links to folders are followed: collections are often assembled from several disks.
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in entered:  # a link to a parent folder
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        files_found += [Path(here, name) for name in files if not name.startswith(".")]
    if broken := sorted(p for p in files_found if p.is_symlink() and not p.exists()):
        raise UserError(f"{broken[0]}: a broken link; is a disk missing?")
    return sorted(p for p in files_found if p.is_file())


def _stop(error: OSError) -> None:
    """Raise UserError, because an unreadable folder must not be mistaken for an empty one."""
    raise UserError(f"{error.filename}: {error.strerror}")


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(d.name for d in folders)
