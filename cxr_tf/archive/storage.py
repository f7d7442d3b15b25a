"""The output folder of an archive: a local folder, or a prefix in an object store.

    storage = open_storage("scores/")                 # or s3://bucket/scores
    storage.create("shards/00042.parquet", content)   # False if it exists already

Plans, lists and shards are created once and never changed, and files appear complete or not at all.
So any process may be killed at any moment, and several may run at once: the first to create a file
wins, and the others have computed the same content.
"""

import contextlib
import itertools
import os
import posixpath
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cxr_tf.errors import UserError
from cxr_tf.files import expand_user

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Unfinished files of other machines, whose processes cannot be looked up, are removed after a day.
STALE_SECONDS = 24 * 3600

# Bytes per read from an object store.
READ_BLOCK = 1 << 20

_number = itertools.count()


def require() -> None:
    """Raise UserError if the optional requirements are missing."""
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"archives need {error.name}: pip install -r requirements-archive.txt"
        ) from None


def filesystem(url: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system of a path or URL, and the path within it.

    Listings are not cached: other processes write to the same folder. Raises UserError for a
    protocol that is unknown, or that needs a package which is not installed.
    """
    import fsspec

    if "://" not in url:
        # fsspec would read "::" in a local name as a chain of file systems.
        return fsspec.filesystem("file"), os.path.abspath(expand_user(url))
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {error}") from None


@dataclass(frozen=True)
class Storage:
    """A folder on a file system of fsspec; names in it are relative, with `/`."""

    url: str
    fs: Any
    root: str

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk or a network share."""
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else ())

    @property
    def absolute(self) -> str:
        """The folder as an absolute path or URL, for workers with a different working directory."""
        return self.root if self.is_local else self.url

    def path(self, name: str) -> str:
        """Return the path of a file in the folder, in the notation of the file system."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Return whether a file exists, without a directory listing, which may lag behind."""
        return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Return the names of the finished files in a subfolder, sorted."""
        try:
            paths = self.fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (posixpath.basename(p.rstrip("/")) for p in paths) if n[:1] != ".")

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self.fs.cat_file(self.path(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for random access."""
        options = {} if self.is_local else {"block_size": READ_BLOCK}
        return self.fs.open(self.path(name), "rb", **options)

    def modified(self, folder: str) -> dict[str, float]:
        """Return the modification times of the files of a subfolder: {name: seconds since 1970}."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        times = {
            posixpath.basename(e["name"]): e.get("mtime", e.get("LastModified")) for e in entries
        }
        return {
            name: t if isinstance(t, (int, float)) else t.timestamp()
            for name, t in times.items()
            if t is not None and name[:1] != "."
        }

    def create(self, name: str, content: bytes | Path) -> bool:
        """Write a new file atomically; return False if a file of that name exists.

        content: bytes, or a local file to copy.
        """
        if not self.is_local:
            try:
                if isinstance(content, Path):
                    self.fs.put_file(str(content), self.path(name), mode="create")
                else:
                    self.fs.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        with self._aside(name, content) as (unfinished, path):
            try:
                os.link(unfinished, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                if path.exists():
                    return False
                os.rename(unfinished, path)
            _sync_folder(path.parent)
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Write or replace a file atomically."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), content)
            return
        with self._aside(name, content) as (unfinished, path):
            os.replace(unfinished, path)
            _sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove an existing file."""
        self.fs.rm_file(self.path(name))

    @contextlib.contextmanager
    def _aside(self, name: str, content: bytes | Path) -> Iterator[tuple[Path, Path]]:
        """Write the content to a hidden file in the same folder, which is removed at the end."""
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = f"{socket.gethostname()}-{os.getpid()}-{next(_number)}"
        unfinished = path.with_name(f".{path.name}.{owner}.writing")
        try:
            with unfinished.open("wb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield unfinished, path
        finally:
            unfinished.unlink(missing_ok=True)

    def clear_unfinished(self) -> None:
        """Remove the unfinished files of dead processes on this machine.

        Those of other machines or unknown owners are removed once they are a day old. Does nothing
        for an object store, where unfinished uploads never appear.
        """
        if not self.is_local:
            return
        for path in Path(self.root).glob("**/.*.writing"):
            owner = re.fullmatch(r"\..*\.(?P<host>[^.].*)-(?P<pid>\d+)-\d+\.writing", path.name)
            here = owner is not None and owner["host"].endswith(socket.gethostname())
            with contextlib.suppress(OSError):
                if (
                    not _is_alive(int(owner["pid"]))
                    if owner and here
                    else time.time() - path.stat().st_mtime > STALE_SECONDS
                ):
                    path.unlink()


def open_storage(url: str) -> Storage:
    """Return the output folder at a local path or a URL; it need not exist."""
    require()
    fs, root = filesystem(url)
    storage = Storage(url, fs, root.rstrip("/") or "/")
    if storage.is_local and Path(root).exists() and not Path(root).is_dir():
        raise UserError(f"{url} is a file: give the folder of an archive")
    return storage


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Sync the directory entries of a folder to disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
