"""Load a catalogue from a folder, a list, a MedMNIST file or phantoms."""

import contextlib
import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cxr_tf.data.catalog import Catalog, Radiograph, positive_last
from cxr_tf.data.reading.conventions import Row, read_folder
from cxr_tf.data.reading.lists import check_utf8, groups_of_list, rows_of_list
from cxr_tf.data.splits import resolve_splits
from cxr_tf.errors import UserError
from cxr_tf.files import digest_files, expand_user

# Number of images of `--data phantom`: large enough that the validation split is not redrawn.
PHANTOM_COUNT = 800

PHANTOM_SIZE = 128


def open_catalog(
    source: str, *, seed: int = 0, resplit: bool = True, task: str = "", positive: str = ""
) -> Catalog:
    """Read a folder, a .csv list or a .npz of radiographs and resolve the splits.

    `resplit=False` leaves the splits as given (empty if none are given), as needed to evaluate a
    trained model. For the task `labels` the labels of a list are unchanged; otherwise healthy, sick
    and similar words mean what they mean as folder names. `positive` is the positive one of two
    labels; without it the order is normal, bacterial, viral, pneumonia, and then alphabetical.

    Raises UserError if the source is missing, has no image, or is invalid.
    """
    root = phantom_folder() if source == "phantom" else expand_user(source)
    if not root.exists():
        raise UserError(f"no such folder or file: {source}{_did_you_mean(root)}")
    if root.is_dir():
        catalog = _catalog(root, *read_folder(root, any_classes=task == "labels"))
    elif root.suffix.lower() == ".csv":
        catalog = _catalog(root, *rows_of_list(root, as_written=task == "labels"))
        catalog = with_groups(catalog, groups_of_list(root))
    elif root.suffix.lower() == ".npz":
        from cxr_tf.data.sources import medmnist

        unpacked = medmnist.unpack(root)
        catalog = replace(_catalog(unpacked, *read_folder(unpacked)), published_split=True)
    else:
        raise UserError(f"neither a folder nor a .csv or .npz file: {source}")
    catalog = replace(catalog, source=str(root if source == "phantom" else source))
    if positive:
        catalog = replace(catalog, findings=positive_last(catalog, positive))
    return resolve_splits(catalog, seed, task) if resplit else catalog


def with_groups(catalog: Catalog, groups: Sequence[tuple[tuple[str, str], ...]]) -> Catalog:
    """Return the catalogue with the given group columns of each row."""
    rows = zip(catalog.radiographs, groups, strict=True)
    return replace(catalog, radiographs=tuple(replace(r, groups=g) for r, g in rows))


def phantom_folder() -> Path:
    """Return the folder of `--data phantom`, written to `data/` on first use."""
    from cxr_tf.data.sources import phantoms

    folder = Path("data") / f"phantom-v{phantoms.GENERATOR_VERSION}"
    if not folder.exists():
        with contextlib.suppress(FileExistsError):  # written by another process meanwhile
            phantoms.write_phantoms(folder, count=PHANTOM_COUNT, size=PHANTOM_SIZE, seed=0)
    return folder


def _catalog(source: Path, rows: Sequence[Row], notes: tuple[str, ...] = ()) -> Catalog:
    """Build the catalogue of (path, finding, patient, split) rows."""
    for path, *_ in rows:
        check_utf8(path)
    # Threads, because hashing and reading both release the interpreter lock.
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest_files, [row[0] for row in rows]))
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


def _did_you_mean(path: Path) -> str:
    """Return a hint that names a similar sibling of a path that does not exist."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
