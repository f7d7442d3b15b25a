"""The run directory `logs/<job>/<name>/`: settings, metrics, predictions, figures, TensorBoard.

A run is finished when `metrics.json` exists: it is written last. Every file appears whole or not at
all.
"""

import csv
import dataclasses
import itertools
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cxr_tf import legacy
from cxr_tf.errors import UserError
from cxr_tf.files import (
    NUMBER,
    Record,
    acquire_lock,
    damaged,
    expand_user,
    read_json,
    release_lock,
    remove_partial_files,
    to_json_types,
    write_atomically,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    import tensorflow as tf
    from matplotlib.figure import Figure


class Catalog(Protocol):
    """The part of `cxr_tf.data.catalog.Catalog` that a run records."""

    @property
    def radiographs(self) -> Sequence[Any]:
        """The images, in order."""

    @property
    def is_phantom(self) -> bool:
        """Whether the images are synthetic."""

    def fingerprint(self) -> str:
        """A hash of labels, splits and contents."""

    def __len__(self) -> int: ...


# Columns of predictions that are not numbers.
TEXT_COLUMNS = {"path", "patient", "finding", "label", "predicted", "prediction_set", "reason"}

# The state of an interrupted training (see `training.checkpoints`), which a finished run drops.
TRAINING_STATE = ("checkpoint.npz", "best.npz")

# Types of the fields of `config.json` and `metrics.json`.
CONFIG_FIELDS = {
    "job": str,
    "name": str,
    "command": str,
    "settings": dict,
    "resolved": dict,
    "data_fingerprint": str,
    "data_is_phantom": bool,
    "images": int,
    "packages": {"*": str},
    "python": str,
    "git_commit": str,
}
SCORES = ("auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity")
TABLE = {"ci95": {"*": [NUMBER]}, **dict.fromkeys((*SCORES, "f1", "loss"), NUMBER)}
METRICS_FIELDS = {
    "val": TABLE,
    "test": TABLE,
    "model": {
        "backbone": str,
        "task": str,
        "classes": [str],
        "saved_model": str,
        "threshold": NUMBER,
        "best_epoch": NUMBER,
        "selection_loss": NUMBER,
    },
    "history": [{"*": NUMBER}],
    "models": (dict, list),
    "steps": [{"name": str, "title": str, "run": str, "skipped": str, "seconds": NUMBER}],
    "machine": dict,
    "chosen": str,
    "source": str,
}

RECORDED_PACKAGES = ("tensorflow", "keras", "scikit-learn", "numpy", "tensorboard", "cxr_tf")

# Settings that do not change the results, so a resumed run may change them. Data are compared by
# content, so a moved folder counts as the same; the name is that of the directory.
NOT_COMPARED = ("resume", "name", "data", "logs", "saved_models", "engine", "worker_timeout")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, with methods that read and write its files."""

    directory: Path

    @property
    def finished(self) -> bool:
        """Whether the run completed."""
        return (self.directory / "metrics.json").exists()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`; raises FileNotFoundError while the run is unfinished."""
        return read_json(self.directory / "metrics.json", METRICS_FIELDS)

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`, settings under their present names."""
        file = self.directory / "config.json"
        config = read_json(file, CONFIG_FIELDS)
        for key in config.keys() & {"settings", "resolved"}:
            config[key] = Record(legacy.present_settings(config[key]), file)
        return config

    @property
    def figures(self) -> dict[str, Path]:
        """The figures of the run by name: figures/<name>.png."""
        return {path.stem: path for path in sorted((self.directory / "figures").glob("*.png"))}

    def predictions(self, split: str) -> dict[str, np.ndarray]:
        """Return the columns of `predictions-<split>.csv`, each [N].

        Probabilities, scores and percentiles are float64, everything else is text. Raises UserError
        if the run has no predictions for the split.
        """
        file = self.directory / f"predictions-{split}.csv"
        try:
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines, strict=True))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row of another length")
            columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
            return {
                name: np.array(values, None if name in TEXT_COLUMNS else np.float64)
                for name, values in columns.items()
            }
        except FileNotFoundError:
            raise UserError(f"{self.directory} has no predictions on {split}") from None
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise damaged(file, str(error)) from None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`, which also marks the run as finished."""
        write_json(self.directory / "metrics.json", metrics)
        release_lock(self.directory)

    def write_predictions(
        self,
        split: str,
        catalog: Catalog,
        labels: np.ndarray,
        probabilities: np.ndarray,
        predicted: np.ndarray,
        classes: tuple[str, ...],
        *,
        extra: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Write `predictions-<split>.csv`: path, patient, label, probabilities, predicted.

        extra: further columns, [N] each.
        """
        extra = extra or {}
        rows = zip(catalog.radiographs, labels, probabilities, predicted, strict=True)
        write_csv(
            self.directory / f"predictions-{split}.csv",
            ["path", "patient", "label", *classes, "predicted", *extra],
            [
                [r.path, r.patient, classes[y], *(f"{v:.8g}" for v in p), classes[k]]
                + [values[i] for values in extra.values()]
                for i, (r, y, p, k) in enumerate(rows)
            ],
        )

    def write_figure(self, name: str, figure: "Figure", writer: "tf.summary.SummaryWriter") -> None:
        """Write `figures/<name>.png`, and the same picture to TensorBoard."""
        import tensorflow as tf
        from matplotlib import pyplot as plt

        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))
        plt.close(figure)
        with writer.as_default():
            tf.summary.image(name, tf.io.decode_png(path.read_bytes(), channels=3)[None], step=0)

    def writer(self) -> "tf.summary.SummaryWriter":
        """Return TensorBoard's event writer for this run."""
        import tensorflow as tf

        return tf.summary.create_file_writer(str(self.directory))


def open_finished_run(folder: str | Path, job: str = "", *, hint: str = "") -> Run:
    """Return the finished run in a folder.

    job: the job that it must be a run of; hint: what to name instead if the folder is not a run.
    Raises UserError if the folder is not a run, or the run is of another job or not finished.
    """
    run = Run(expand_user(str(folder)))
    if not (run.directory / "config.json").exists():
        raise UserError(
            f"{folder} is not a run directory (logs/{job or '<job>'}/<name>)"
            + (f": {hint}" if hint else "")
        )
    if job and run.config["job"] != job:
        raise UserError(f"{folder} is a run of another job ({run.config['job']}), not of {job}")
    if not run.finished:
        raise UserError(f"the run {folder} is not finished: resume it first")
    return run


def to_run_name(text: str) -> str:
    """Convert a text to a valid name of a run: other characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100]


def numbered_names(name: str) -> Iterator[str]:
    """Yield the name, then the name with -2, -3 and so on appended."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def open_run(
    logs: str, job: str, name: str, settings: Any, data: Catalog | Run, resolved: Any = None
) -> Run:
    """Create a run directory, or with `settings.resume` open the existing one of that name.

    data: the catalogue, or a run on the same data, whose record is copied. resolved: the settings
    with their defaults filled in; the values it adds are recorded. An interrupted run of a job
    without `resume`, which takes a minute, is started anew in an empty directory. Opening a run to
    resume it removes what a killed process left in it.

    Raises UserError for an invalid name, for a run that exists and is not to be resumed or that
    another process is working on, and for a resumed run whose settings or data have changed.
    """
    run = reserve_run(logs, job, name, settings)
    if run.directory.exists() and not run.finished:
        acquire_lock(run.directory)
    config = run_record(job, name, settings, data)
    config["resolved"] = _added(settings, resolved or settings)
    if (run.directory / "config.json").exists() and getattr(settings, "resume", False):
        _check_unchanged(run, config)
        remove_partial_files(run.directory)
        if run.finished:
            for name in TRAINING_STATE:
                (run.directory / name).unlink(missing_ok=True)
        return run
    return start_run(run.directory, config)


def start_run(directory: Path, config: dict[str, Any]) -> Run:
    """Lock and empty a run directory, record the settings, and return the run.

    `config.json` is removed last: until a directory is empty, it is that of an interrupted run, and
    the next process empties it again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    acquire_lock(directory)
    for path in sorted(directory.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(directory / "config.json", config)
    return Run(directory)


def is_foreign(directory: Path) -> bool:
    """Return whether a directory has content, but not that of a run."""
    return (
        directory.exists()
        and not (directory / "config.json").exists()
        and any(not path.name.startswith(".") for path in directory.iterdir())
    )


def run_record(job: str, name: str, settings: Any, data: Catalog | Run | None) -> dict[str, Any]:
    """Return the content of `config.json`: settings, data if there are any, and software."""
    return {
        "job": job,
        "name": name,
        "settings": dataclasses.asdict(settings),
        **(_facts(data) if data is not None else {}),
        "packages": {p: _version(p) for p in RECORDED_PACKAGES},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }


def _added(settings: Any, resolved: Any) -> dict[str, Any]:
    given = dataclasses.asdict(settings)
    return {k: v for k, v in dataclasses.asdict(resolved).items() if v != given[k]}


def _facts(data: Catalog | Run) -> dict[str, Any]:
    """Return the entries of `config.json` about the data."""
    if isinstance(data, Run):
        config = data.config
        return {key: config[key] for key in ("data_fingerprint", "data_is_phantom", "images")}
    return {
        "data_fingerprint": data.fingerprint(),
        "data_is_phantom": data.is_phantom,
        "images": len(data),
    }


def check_name(name: str) -> None:
    """Raise UserError for a run name that is not one plain file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"--name '{name}' must be letters, digits, '.', '_' and '-', starting with a letter or "
            "digit: it becomes a folder"
        )


def reserve_run(logs: str, job: str, name: str, settings: Any) -> Run:
    """Return the run of this name, which `open_run` will open; call it before any costly work.

    An interrupted run is locked for this process from here on. Raises UserError for an invalid
    name, for a run that exists and is not to be resumed, and for one that another process is
    working on.
    """
    check_name(name)
    run = Run(Path(logs) / job / name)
    if is_foreign(run.directory):
        raise UserError(f"{run.directory} is not a run: choose another --name, or remove it")
    started = (run.directory / "config.json").exists()
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


def _check_unchanged(run: Run, config: dict[str, Any]) -> None:
    before = run.config
    # Settings first: another --seed may draw other splits, and the error should then name the seed.
    for key, value in config["settings"].items():
        flag = "--" + key.replace("_", "-")
        if key not in before["settings"] and legacy.ADDED_SETTINGS.get(key) == value:
            continue
        if key not in NOT_COMPARED and key not in before["settings"]:
            raise UserError(
                f"{run.directory} was started by a version without {flag}: choose another --name"
            )
        old = before["settings"].get(key)
        if key not in NOT_COMPARED and to_json_types(old) != to_json_types(value):
            raise UserError(
                f"{run.directory} was started with {flag} {old}, not {value}: resume it with the "
                "same settings, or choose another --name"
            )
    if before["data_fingerprint"] != config["data_fingerprint"]:
        raise UserError(
            f"the data have changed since {run.directory} was started: choose another --name"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
