"""Paths as users write them, names derived from them, and digests of files."""

import hashlib
import os
from pathlib import Path


def expand_user(path: str) -> Path:
    """Return the path with `~` and `~name` expanded; unchanged if no such user exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the name may be that of a folder
        return Path(path)


def short_stem(path: Path) -> str:
    """Return the file's stem, shortened so that a name derived from it fits into 255 bytes."""
    return os.fsencode(path.stem)[:150].decode(errors="ignore")


def digest_files(*paths: str | Path, algorithm: str = "blake2b") -> str:
    """Return the hex digest of the concatenated contents of files.

    algorithm: blake2b with a digest of 16 bytes, or another algorithm of `hashlib` with its full
    digest, for comparison with a published checksum.
    """
    digest = hashlib.blake2b(digest_size=16) if algorithm == "blake2b" else hashlib.new(algorithm)
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
