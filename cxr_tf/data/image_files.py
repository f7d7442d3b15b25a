"""Find images by file, folder or glob pattern."""

import glob
import sys
from collections import Counter
from pathlib import Path

from cxr_tf.data.reading.conventions import IMAGE_SUFFIXES, visible_files
from cxr_tf.data.reading.lists import check_utf8
from cxr_tf.data.sources import dicom
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user


def find_images(items: tuple[str, ...]) -> list[str]:
    """Return the images of files, folders (recursively) and glob patterns, each once, in order.

    Raises UserError for an item that matches no image, and for an empty list.
    """
    if not items:
        raise UserError("--images is empty: give a file, a folder or a pattern")
    paths: dict[str, None] = {}
    others = Counter[str]()
    for item in items:
        if not item:
            raise UserError("--images: one of its values is empty")
        path = expand_user(item)
        if path.is_dir():
            inside = []
            for p in visible_files(path):
                if p.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(p):
                    inside.append(str(p))
                else:
                    others[p.suffix.lower() or "no suffix"] += 1
            if not inside:
                raise UserError(f"no JPEG, PNG or DICOM image in {item}")
        elif path.is_file():
            inside = [str(path)]
        else:
            inside = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not inside:
                raise UserError(f"no such image, folder or pattern: {item}")
        paths |= dict.fromkeys(inside)
    if others:
        named = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        print(f"left out, not JPEG, PNG or DICOM: {named}", file=sys.stderr)
    for name in paths:
        check_utf8(Path(name))
    return list(paths)
