"""Image files that a user names as files, folders or glob patterns."""

import glob
import sys
from collections import Counter
from pathlib import Path

from cxr_tf.data.conventions import IMAGE_SUFFIXES, visible_files
from cxr_tf.data.lists import check_utf8
from cxr_tf.data.sources import dicom
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user


def find_images(wanted: tuple[str, ...]) -> list[str]:
    """Files, folders (recursively) and glob patterns -> image paths, each once, in that order.

    Raises UserError for one that names nothing, and for none at all.
    """
    if not wanted:
        raise UserError("--images names no image: a file, a folder or a pattern")
    found: dict[str, None] = {}
    others = Counter[str]()
    for item in wanted:
        if not item:
            raise UserError("--images names no image: one of its values is empty")
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
        found |= dict.fromkeys(inside)
    if others:
        named = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        print(f"left out, being neither JPEG, PNG nor DICOM: {named}", file=sys.stderr)
    for name in found:
        check_utf8(Path(name))
    return list(found)
