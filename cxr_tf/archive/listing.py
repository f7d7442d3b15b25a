"""List the images of folders, lists, patterns, URLs and archives, as one stream.

    for image in list_images(("ward/", "list.csv", "s3://pacs/2025/", "films.tar")): ...

Only one folder is in memory at a time, so that memory does not grow with the number of images. The
order is reproducible, and the same as that of `predict.py`.
"""

import csv
import functools
import glob
import io
import logging
import os
import posixpath
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cxr_tf.archive.sources import Image
from cxr_tf.archive.storage import filesystem
from cxr_tf.data.reading.conventions import IMAGE_SUFFIXES
from cxr_tf.data.reading.lists import check_utf8
from cxr_tf.data.sources import dicom
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)

LIST_SUFFIXES = (".csv", ".txt")
ARCHIVE_SUFFIXES = (".tar", ".zip")

# Headers of a .tar are read in blocks of this many bytes; the images between them are skipped.
HEADER_BLOCK = 64 * 1024


def list_images(wanted: tuple[str, ...]) -> Iterator[Image]:
    """Yield the images that paths and URLs name, in order and with repetitions.

    wanted: files, folders (read recursively), patterns, .csv lists with a column `path` (relative
    to the list), .txt lists with one path per line, .tar and .zip archives; on disk or at an
    fsspec URL. Raises UserError for an item without images.
    """
    others = Counter[str]()
    for item in wanted:
        if not item:
            raise UserError("one of the given paths is empty")
        empty = True
        for image in _images_of(item, others):
            empty = False
            _check(image)
            yield image
        if empty:
            raise UserError(f"no JPEG, PNG or DICOM image in {item}")
    if others:
        named = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        log.info("left out (not JPEG, PNG or DICOM): %s", named)


def _images_of(item: str, others: Counter[str]) -> Iterator[Image]:
    """Yield the images of one value of --images."""
    fs, path = filesystem(item)
    local = "://" not in item
    try:
        if fs.isfile(path):
            # Keep the protocol: without it, a path in a bucket would be read as a path on disk.
            yield from _images_of_file(path if local else item, others)
        elif fs.isdir(path):
            yield from _walk_local(path, others, set()) if local else _walk(fs, path, others)
        else:
            names = _matches(fs, path, local)
            if not names:
                raise UserError(f"no such image or folder, and no file matches: {item}")
            for name in names:
                yield from _images_of_file(name, others)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{item}: {error.strerror or error}") from None
    except Exception as error:  # fsspec's back ends raise errors of any kind
        if local:
            raise
        raise UserError(f"{item}: {type(error).__name__}: {error}") from None


def _matches(fs: Any, pattern: str, local: bool) -> list[str]:
    if local:
        return sorted(p for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not glob.has_magic(pattern):
        return []
    return [fs.unstrip_protocol(p) for p in sorted(fs.glob(pattern)) if fs.isfile(p)]


def _images_of_file(path: str, others: Counter[str]) -> Iterator[Image]:
    """Yield the images that a list or archive contains, or else the file itself."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix in LIST_SUFFIXES:
        yield from _read_list(path)
    elif suffix in ARCHIVE_SUFFIXES:
        yield from _members(path, others)
    else:
        yield Image(path)


def _check(image: Image) -> None:
    """Raise UserError for a path that is not valid UTF-8, which no table can store."""
    try:
        image.path.encode()
    except UnicodeEncodeError:
        check_utf8(Path(image.path))


# ---------------------------------------------------------------------- folders


def _walk_local(
    folder: str, others: Counter[str], entered: set[tuple[int, int]]
) -> Iterator[Image]:
    """Yield the images that `conventions.visible_files` lists, one folder at a time."""
    state = os.stat(folder)
    identity = (state.st_dev, state.st_ino)
    if identity in entered:  # visited before, through a link, perhaps to a parent folder
        return
    entered.add(identity)
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if e.name[:1] != "."), key=lambda e: e.name)
    for entry in visible:
        if entry.is_dir():
            yield from _walk_local(entry.path, others, entered)
        elif entry.is_file():
            is_dicom = functools.partial(dicom.is_dicom, Path(entry.path))
            yield from _if_image(entry.path, others, is_dicom)
        elif entry.is_symlink():
            raise UserError(f"{entry.path}: a broken link; is a disk missing?")


def _walk(fs: Any, folder: str, others: Counter[str]) -> Iterator[Image]:
    """Yield the images of a remote folder. No file is opened: DICOM is recognised by its name."""
    entries = sorted(fs.ls(folder, detail=True), key=lambda e: e["name"])
    for entry in entries:
        path = entry["name"]
        name = posixpath.basename(path.rstrip("/"))
        if name.startswith(".") or path.rstrip("/") == folder.rstrip("/"):
            continue
        if entry["type"] == "directory":
            yield from _walk(fs, path, others)
        elif name:
            yield from _if_image(fs.unstrip_protocol(path), others, lambda n=name: _may_be_dicom(n))


def _if_image(path: str, others: Counter[str], is_dicom: Any) -> Iterator[Image]:
    suffix = posixpath.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES or is_dicom():
        yield Image(path)
    else:
        others[suffix or "no suffix"] += 1


def _may_be_dicom(name: str) -> bool:
    """Return whether a file's name suggests DICOM: its suffix, no suffix, or the end of a UID."""
    suffix = posixpath.splitext(name)[1].lower()
    return suffix in dicom.SUFFIXES or not suffix or re.fullmatch(r"\.\d+", suffix) is not None


# ---------------------------------------------------------------------- lists


def _read_list(path: str) -> Iterator[Image]:
    """Yield the images of a list, line by line, without checking that they exist."""
    fs, inner = filesystem(path)
    with fs.open(inner, "rb") as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as lines:
        try:
            for number, name in _listed(path, lines):
                if not name:
                    raise UserError(f"{path}, line {number}: no path")
                yield Image(_joined(path, name))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not in UTF-8: save it in UTF-8 ({error})") from None
        except csv.Error as error:
            raise UserError(f"{path} cannot be read as a CSV list: {error}") from None


def _listed(path: str, lines: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield (line number, path as written) of each line."""
    if path.lower().endswith(".txt"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.strip()
        return
    header = lines.readline()
    skipped = 1
    if header.lower().startswith("sep="):  # a hint to Excel
        header, skipped = lines.readline(), 2
    delimiter = max(",;\t", key=header.count)  # spreadsheets write semicolons in many locales
    columns = [c.strip().lower() for c in next(csv.reader([header], delimiter=delimiter), [])]
    if "path" not in columns:
        raise UserError(
            f"{path} has no column path; its first line names {', '.join(columns) or 'nothing'}"
        )
    column = columns.index("path")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        if row:
            yield skipped + reader.line_num, row[column].strip() if column < len(row) else ""


def _joined(path: str, name: str) -> str:
    """Return a path from a list, resolved against the folder of the list."""
    if "://" in name:
        return name
    if "://" in path:
        return posixpath.join(posixpath.dirname(path), name)
    joined = name if name[:1] == "/" else os.path.join(os.path.dirname(path), name)
    # Most paths need no normalisation, which would slow down a list of millions.
    return os.path.normpath(joined) if "/." in joined or "//" in joined else joined


# ---------------------------------------------------------------------- archives


def _members(archive: str, others: Counter[str]) -> Iterator[Image]:
    """Yield the images in a .tar or .zip, in the order of the archive."""
    fs, path = filesystem(archive)
    kind = posixpath.splitext(archive)[1].lower()[1:]
    try:
        members = _tar_members(fs, path) if kind == "tar" else _zip_members(fs, path)
        for name, offset, length in members:
            parts = name.split("/")
            if any(p.startswith((".", "__MACOSX")) for p in parts if p not in ("", ".")):
                continue
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES or _may_be_dicom(parts[-1]):
                yield Image(f"{kind}://{name}::{archive}", offset, length)
            else:
                others[suffix or "no suffix"] += 1
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        hint = (
            "; if it is compressed, unpack it: a compressed .tar does not allow random access"
            if kind == "tar"
            else ""
        )
        raise UserError(f"{archive} cannot be read as a .{kind} archive: {error}{hint}") from None


def _tar_members(fs: Any, path: str) -> Iterator[tuple[str, int, int]]:
    # With small buffers only the headers of a remote archive are fetched, and not the images.
    options = {} if "file" in fs.protocol else {"block_size": HEADER_BLOCK}
    with fs.open(path, "rb", **options) as file, tarfile.open(fileobj=file, mode="r:") as members:
        for member in members:
            # Otherwise tarfile keeps all members in memory.
            members.members = []  # type: ignore[attr-defined]
            if member.isreg():
                yield member.name, member.offset_data, member.size


def _zip_members(fs: Any, path: str) -> Iterator[tuple[str, int, int]]:
    with fs.open(path, "rb") as file, zipfile.ZipFile(file) as members:
        for member in members.infolist():
            if not member.is_dir():
                yield member.filename, -1, -1
