"""Download published data sets: resume if interrupted, verify, and unpack safely.

    folder = prepare(SOURCES["kermany"], Path("data/kermany"))
    file = prepare(SOURCES["pneumoniamnist_64"], Path("data/pneumoniamnist_64.npz"))

A file is accepted only if its size and checksum are the published ones. An interrupted download is
resumed by the same command; an unpacked folder appears whole or not at all.
"""

import http.client
import logging
import os
import shutil
import stat
import time
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cxr_tf import console
from cxr_tf.data.reading.conventions import IMAGE_SUFFIXES
from cxr_tf.errors import UserError
from cxr_tf.files import digest_files, expand_user, publish, temporary_sibling, write_atomically

log = logging.getLogger(__name__)


BLOCK = 1 << 18  # bytes

TIMEOUT = 30  # seconds without a byte

MAX_FAILURES = 6  # in a row, without a new byte

# JPEGs hardly compress in an archive; one that expands more than this is not a set of images.
MAX_EXPANSION = 10


@dataclass(frozen=True)
class Source:
    """One published file: location, size, checksum and terms of use.

    `checksum` is `<algorithm>:<hex>`. `inside` is the folder in an archive that contains the
    images, and is empty if the file is not unpacked.
    """

    title: str
    url: str
    page: str
    bytes: int
    checksum: str
    licence: str
    citation: str
    inside: str = ""

    @property
    def terms(self) -> str:
        """The terms of use as a text, written next to the data."""
        return (
            f"{self.title}\n{self.page}\n\nLicence: {self.licence}\n\nCite: {self.citation}\n\n"
            f"File as published: {self.bytes} bytes, {self.checksum}\n"
        )


_CC_BY = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"


def _pneumoniamnist(size: int, count: int, md5: str) -> Source:
    suffix = "" if size == 28 else f"_{size}"
    return Source(
        title=f"PneumoniaMNIST, {size} px (MedMNIST v2)",
        url=f"https://zenodo.org/records/10519652/files/pneumoniamnist{suffix}.npz?download=1",
        page="https://doi.org/10.5281/zenodo.10519652",
        bytes=count,
        checksum=f"md5:{md5}",
        licence=_CC_BY,
        citation=(
            "Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni: MedMNIST v2 - A large-scale lightweight "
            "benchmark for 2D and 3D biomedical image classification. Scientific Data 10:41, 2023. "
            "The images are those of Kermany et al., Cell 172:1122-1131, 2018."
        ),
    )


# PneumoniaMNIST's MD5s are those of INFO in the package medmnist 3.0.2. The SHA-256 of Kermany's
# archive is not on its page; it is what independent users of the file report.
SOURCES = {
    "kermany": Source(
        title="Chest X-ray images (pneumonia), Kermany, Zhang and Goldbaum, version 2",
        url=(
            "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
        ),
        page="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        bytes=1_235_512_464,
        checksum="sha256:13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
        licence=_CC_BY,
        citation=(
            "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray "
            "Images for Classification. Mendeley Data, V2, 2018, doi:10.17632/rscbjbr9sj.2. "
            "Kermany et al.: Identifying Medical Diagnoses and Treatable Diseases by Image-Based "
            "Deep Learning. Cell 172:1122-1131, 2018."
        ),
        inside="chest_xray",
    ),
    "pneumoniamnist_28": _pneumoniamnist(28, 4_170_669, "28209eda62fecd6e6a2d98b1501bb15f"),
    "pneumoniamnist_64": _pneumoniamnist(64, 20_606_998, "8f4eceb4ccffa70c672198ea285246c6"),
    "pneumoniamnist_128": _pneumoniamnist(128, 75_506_212, "05b46931834c231683c68f40c47b2971"),
    "pneumoniamnist_224": _pneumoniamnist(224, 214_384_716, "d6a3c71de1b945ea11211b03746c1fe1"),
}


def prepare(source: Source, target: Path, *, origin: str = "", pause: float = 1.0) -> Path:
    """Download a published data set to `target`, and return its path.

    `target` is a folder if the published file is an archive, otherwise a file. `origin` is the URL
    of a mirror, or a file on disk, to use instead of the published URL; the checksum must match.
    `pause` is the wait before the first retry, in seconds; it doubles each time. Raises UserError
    if the data set cannot be obtained; a partial download remains, and is resumed next time.
    """
    log.info("%s", source.terms)
    if target.exists():
        log.info("%s already exists", target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    local = expand_user(origin) if origin and "://" not in origin else None
    if local is not None:
        if not local.is_file():
            raise UserError(f"--from {origin}: no such file")
        file = local
        if problem := _difference(file, source):
            raise UserError(f"{file} is not the published file: {problem}")
    else:
        file = download(source, target.with_name(f".{target.name}.part"), origin, pause=pause)
    if source.inside:
        unpack(file, target, inside=source.inside, terms=source.terms)
        if local is None:
            file.unlink()
        return target
    if local is not None:
        _check_space(target.parent, source.bytes)
        write_atomically(target, lambda p: shutil.copyfile(file, p))
    write_atomically(target.with_suffix(".LICENCE.txt"), lambda p: p.write_text(source.terms))
    if local is None:
        os.replace(file, target)
    return target


def download(source: Source, part: Path, origin: str = "", *, pause: float = 1.0) -> Path:
    """Download a source to `part`, resuming from its content; return it, complete and verified.

    Raises UserError if the server has a different file, or cannot be reached.
    """
    url = origin or source.url
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--from {url}: give an http:// or https:// URL, or a file on disk")
    size = part.stat().st_size if part.exists() else 0
    needed = source.bytes * (2 if source.inside else 1)  # the archive and its content
    _check_space(part.parent, needed - size)
    _fetch(source, url, part, pause)
    problem = _difference(part, source)
    if problem and size:
        # The server may have had another file when the download was started.
        log.info("the resumed download is not the published file; starting again")
        part.unlink()
        _fetch(source, url, part, pause)
        problem = _difference(part, source)
    if problem:
        part.unlink()
        raise UserError(f"{url} is not the published file: {problem}")
    return part


def _fetch(source: Source, url: str, part: Path, pause: float) -> None:
    """Append to `part` until it has the published size, retrying if that may help."""
    failures, last = 0, ""
    while failures < MAX_FAILURES:
        have = part.stat().st_size if part.exists() else 0
        if have == source.bytes:
            return
        if failures:
            wait = pause * 2 ** (failures - 1)
            log.info("%s; retrying in %.0f s", last, wait)
            time.sleep(wait)
        try:
            _append(source, url, part, have if have < source.bytes else 0)
            last = "the connection ended early"
        except urllib.error.HTTPError as error:
            last = f"the server responded {error.code} {error.reason}"
            if error.code == 416:  # it has fewer bytes than the partial file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                failures = MAX_FAILURES
        except UnicodeError:
            raise UserError(
                f"{url} is not a valid URL: give it in ASCII, percent-encoded"
            ) from None
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            last = f"no response ({getattr(e, 'reason', e) or type(e).__name__})"
        progressed = part.exists() and part.stat().st_size > have
        failures = 1 if progressed and failures < MAX_FAILURES else failures + 1
    kept = f"; {part} is kept, and the same command resumes it" if part.exists() else ""
    raise UserError(
        f"{url}: {last}{kept}. {'Or download' if kept else 'Download'} the file from {source.page} "
        "and pass it with --from"
    )


def _append(source: Source, url: str, part: Path, have: int) -> None:
    """Request the bytes after the first `have`, and append them."""
    request = urllib.request.Request(url, headers={"User-Agent": "cxr_tf"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        # A server without support for ranges sends the whole file, with status 200.
        offset = have if response.status == 206 else 0
        if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()
            return
        length = response.headers.get("Content-Length")
        if length is not None and offset + int(length) > source.bytes:
            raise UserError(
                f"{url} has {offset + int(length)} bytes, but the published file has "
                f"{source.bytes}: not the same file"
            )
        with (
            part.open("r+b" if offset else "wb") as out,
            console.Progress(source.bytes, "bytes", before=offset) as progress,
        ):
            out.seek(offset)
            while block := response.read(min(BLOCK, source.bytes - out.tell())):
                out.write(block)
                progress(out.tell())


def _difference(file: Path, source: Source) -> str:
    """Return how a file differs from the published one; empty if it does not."""
    if (size := file.stat().st_size) != source.bytes:
        return f"it has {size} bytes, not {source.bytes}"
    algorithm, expected = source.checksum.split(":")
    digest = digest_files(file, algorithm=algorithm)
    if digest != expected:
        return f"its {algorithm} is {digest}, not {expected}"
    return ""


def unpack(archive: Path, folder: Path, *, inside: str, terms: str) -> None:
    """Write the images below `inside` in a zip archive to `folder`, atomically.

    `terms` are written as LICENCE.txt. Raises UserError for an archive that would write outside of
    the folder, contains a link, expands to far more than its own size, or has no image below
    `inside`.
    """
    try:
        with temporary_sibling(folder) as partial, zipfile.ZipFile(archive) as content:
            members = _members(content, archive, inside)
            _check_space(folder.parent, sum(m.file_size for m in members.values()))
            log.info("unpacking %d images to %s", len(members), folder)
            for name, member in members.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as packed, path.open("xb") as out:
                    shutil.copyfileobj(packed, out)
            (partial / "LICENCE.txt").write_text(terms)
            publish(partial, folder)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from None


def _members(
    content: zipfile.ZipFile, archive: Path, inside: str
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the images to write by their path in the folder, after checking all entries."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    total = 0
    for entry in content.infolist():
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            raise UserError(f"{archive} is not safe: it would write to {entry.filename}")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive} is not safe: {entry.filename} is a link or a device")
        total += entry.file_size
        hidden = any(part.startswith((".", "__")) for part in path.parts)
        if entry.is_dir() or hidden or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.is_relative_to(inside):
            name = path.relative_to(inside)
            if name in members:
                raise UserError(f"{archive} is not safe: it contains {entry.filename} twice")
            members[name] = entry
    if total > MAX_EXPANSION * archive.stat().st_size:
        raise UserError(
            f"{archive} is not safe: it would unpack to {total / 1e9:.1f} GB, more than "
            f"{MAX_EXPANSION} times its size"
        )
    if not members:
        raise UserError(f"{archive} has no image below {inside}/")
    return members


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are needed in {folder.resolve()}, "
            f"but only {free / 1e9:.1f} GB are free"
        )
