"""Atomic writing of files and folders; locks; digests; paths as users write them."""

from cxr_tf.files.atomic import (
    publish,
    remove_partial_files,
    replace_folder,
    replace_text,
    sync,
    temporary_sibling,
    write_atomically,
)
from cxr_tf.files.disk_errors import disk_errno, naming_file
from cxr_tf.files.formats import (
    NUMBER,
    MissingKey,
    Record,
    damaged,
    read_json,
    to_json_types,
    write_arrays,
    write_csv,
    write_json,
)
from cxr_tf.files.locks import (
    acquire_lock,
    exclusive_lock,
    held_locks,
    identity,
    lock,
    release_lock,
)
from cxr_tf.files.paths import digest_files, expand_user, short_stem

__all__ = [
    "NUMBER",
    "MissingKey",
    "Record",
    "acquire_lock",
    "damaged",
    "digest_files",
    "disk_errno",
    "exclusive_lock",
    "expand_user",
    "held_locks",
    "identity",
    "lock",
    "naming_file",
    "publish",
    "read_json",
    "release_lock",
    "remove_partial_files",
    "replace_folder",
    "replace_text",
    "short_stem",
    "sync",
    "temporary_sibling",
    "to_json_types",
    "write_arrays",
    "write_atomically",
    "write_csv",
    "write_json",
]
