"""Read images from disk, from URLs, and from .tar and .zip archives.

    read = Reader(retries=6)
    content = read(Image("s3://pacs/2025/a.png"))        # JPEG or PNG; DICOM becomes PNG

A path is a file, a URL, or a member of an archive in the notation of fsspec,
`zip://inside.png::s3://pacs/films.zip`. Transient failures are retried after growing pauses.
"""

import errno
import functools
import logging
import os
import random
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from cxr_tf.archive.storage import filesystem
from cxr_tf.data.sources import dicom
from cxr_tf.errors import UserError, first_line
from cxr_tf.serving.prediction.client import FIRST_PAUSE, RETRIES, read_image

log = logging.getLogger(__name__)

# Number of archives that a process keeps open, each with its table of contents in memory.
OPEN_ARCHIVES = 4

TAR_BLOCK = 512

# Permanent errors. All others, such as a stale network share, may be transient.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Image(NamedTuple):
    """An image to score: its path, and its byte range in a .tar archive.

    offset, length: position and size of the member's data in a .tar, in bytes; otherwise -1.
    """

    path: str
    offset: int = -1
    length: int = -1


class Unreachable(Exception):
    """A file that stays unreachable after all attempts; the message says why."""


class Reader:
    """A reader of images, shared by all threads of a process so that archives are opened once."""

    def __init__(self, retries: int = RETRIES) -> None:
        self.retries = retries
        self._lock = threading.Lock()
        self._open_zip = functools.lru_cache(OPEN_ARCHIVES)(_open_zip)

    def __call__(self, image: Image) -> bytes:
        """Return the content of an image as JPEG or PNG.

        Raises UserError or OSError for permanent errors, and Unreachable if all attempts fail or a
        URL denies access.
        """
        if "://" not in image.path:
            return self._persistently(lambda: read_image(image.path))
        try:
            content = self._persistently(lambda: self._fetch(image))
        except PermissionError:
            # The cause is usually an expired token, and not the image.
            raise Unreachable(f"unreachable: {os.strerror(errno.EACCES)}") from None
        except FileNotFoundError:  # the message of fsspec is only the path
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        if dicom.has_dicom_content(content, image.path):
            return dicom.png_of_content(content, image.path)
        return content

    def _fetch(self, image: Image) -> bytes:
        member, _, archive = image.path.partition("::")
        if not archive:
            fs, path = filesystem(image.path)
            return fs.cat_file(path)
        kind, _, name = member.partition("://")
        if kind == "tar":
            return _tar_member(image, archive, name)
        with self._lock:  # otherwise several threads would open the same archive
            opened = self._open_zip(archive)
        try:
            return opened.read(name)
        except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{image.path}: {error}") from None

    def _persistently(self, fetch: Callable[[], bytes]) -> bytes:
        pause = FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                return fetch()
            except (UserError, *LASTING):
                raise
            except Exception as error:  # fsspec's back ends raise errors of any kind
                reason = first_line(error)[:200]
                if attempt == self.retries:
                    raise Unreachable(f"unreachable: {reason}") from None
                log.debug("attempt %d: %s", attempt + 1, reason)
            # Randomised, so that workers that failed together do not retry together.
            time.sleep(pause * random.uniform(1.0, 1.5))
            pause *= 2
        raise AssertionError  # the last attempt returns or raises


def _open_zip(archive: str) -> zipfile.ZipFile:
    fs, path = filesystem(archive)
    try:
        return zipfile.ZipFile(fs.open(path, "rb"))
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: {error}") from None


def _tar_member(image: Image, archive: str, name: str) -> bytes:
    """Read the byte range of a member with its header; the archive is not indexed again."""
    fs, path = filesystem(archive)
    start = image.offset - TAR_BLOCK
    content = fs.cat_file(path, start=start, end=image.offset + image.length)
    if len(content) < TAR_BLOCK + image.length:
        raise UserError(f"{image.path}: the archive ends before the image does")
    try:
        size = tarfile.TarInfo.frombuf(content[:TAR_BLOCK], "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        size = -1
    if size != image.length:
        raise UserError(f"{image.path}: the archive has changed since it was planned")
    return content[TAR_BLOCK:]
