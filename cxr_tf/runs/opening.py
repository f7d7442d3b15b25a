"""Opening of run directories: a new one, one to be resumed, or a finished one."""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxr_tf.errors import UserError
from cxr_tf.files import (
    acquire_lock,
    expand_user,
    release_lock,
    remove_partial_files,
    write_json,
)
from cxr_tf.runs.config_json import CONFIG
from cxr_tf.runs.record import added_settings, check_unchanged, run_record
from cxr_tf.runs.run import Catalog, Run

# Files with the state of interrupted training (see `training.checkpoints`). They are removed when a
# finished run is resumed.
TRAINING_STATE = ("checkpoint.npz", "best.npz")


def open_finished_run(folder: str | Path, job: str = "", *, hint: str = "") -> Run:
    """Return the finished run in a folder.

    job: the job that the run must belong to; hint: the end of the error message if the folder is
    not a run, which says what to give instead. Raises UserError if the folder is not a run, or if
    the run belongs to another job or is not finished.
    """
    run = Run(expand_user(str(folder)))
    if not (run.directory / CONFIG).exists():
        raise UserError(
            f"{folder} is not a run directory (logs/{job or '<job>'}/<name>)"
            + (f": {hint}" if hint else "")
        )
    if job and run.config["job"] != job:
        raise UserError(
            f"{folder} is a run of another job, {run.config['job']}: give logs/{job}/<name>"
        )
    if not run.finished:
        raise UserError(f"the run {folder} is not finished: resume it first")
    return run


def open_run(
    logs: str, job: str, name: str, settings: Any, data: Catalog | Run, resolved: Any = None
) -> Run:
    """Create a run directory, or with `settings.resume` open the existing one of that name.

    data: the catalogue, or a run on the same data, whose record is copied. resolved: the settings
    with their defaults filled in; the values that it adds are recorded. An interrupted run of a job
    without `resume` is restarted in the emptied directory, because such jobs are short. When a run
    is resumed, the temporary files of a killed process are removed.

    Raises UserError for an invalid name, for a run that exists and is not to be resumed or that
    another process is working on, and for a resumed run with different settings or data.
    """
    run = reserve_run(logs, job, name, settings)
    if run.directory.exists() and not run.finished:
        acquire_lock(run.directory)
    config = run_record(job, name, settings, data)
    config["resolved"] = added_settings(settings, resolved or settings)
    if (run.directory / CONFIG).exists() and getattr(settings, "resume", False):
        check_unchanged(run, config)
        remove_partial_files(run.directory)
        if run.finished:
            for name in TRAINING_STATE:
                (run.directory / name).unlink(missing_ok=True)
        return run
    return start_run(run.directory, config)


def start_run(directory: Path, config: dict[str, Any]) -> Run:
    """Lock and empty a run directory, record the settings, and return the run.

    `config.json` is removed last: until then the directory counts as that of an interrupted run, so
    that after a kill the next process empties it again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    acquire_lock(directory)
    for path in sorted(directory.iterdir(), key=lambda path: path.name == CONFIG):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(directory / CONFIG, config)
    return Run(directory)


def reserve_run(logs: str, job: str, name: str, settings: Any) -> Run:
    """Check that a run of this name can be opened, and return it.

    Call this before any costly work, and `open_run` after it. An interrupted run is locked for this
    process from then on. Raises UserError for an invalid name, for a run that exists and is not to
    be resumed, and for one that another process is working on.
    """
    check_name(name)
    run = Run(Path(logs) / job / name)
    if is_foreign(run.directory):
        raise UserError(f"{run.directory} is not a run: choose another --name, or remove it")
    started = (run.directory / CONFIG).exists()
    resumable = hasattr(settings, "resume")
    if started and not run.finished:
        acquire_lock(run.directory)
    if started and not getattr(settings, "resume", False) and (run.finished or resumable):
        release_lock(run.directory)
        state = "is finished" if run.finished else "was interrupted"
        or_resume = ", or --resume" if resumable else ""
        raise UserError(
            f"the run {run.directory} exists and {state}: choose another --name{or_resume}"
        )
    return run


def check_name(name: str) -> None:
    """Raise UserError for a run name that is not a plain file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"--name '{name}' must consist of up to 100 letters, digits, '.', '_' and '-', and "
            "start with a letter or digit: it becomes the name of a folder"
        )


def to_run_name(text: str) -> str:
    """Convert a text to a valid run name: characters that are not allowed become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100]


def numbered_names(name: str) -> Iterator[str]:
    """Yield the name, then the name with -2, -3 and so on appended."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def is_foreign(directory: Path) -> bool:
    """Return whether a directory contains files, but is not a run directory."""
    return (
        directory.exists()
        and not (directory / CONFIG).exists()
        and any(not path.name.startswith(".") for path in directory.iterdir())
    )
