"""The state of a study: the run of each step, and its fingerprint."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cxr_tf.config import RunStudy
from cxr_tf.data import catalog as data_catalog
from cxr_tf.files import NUMBER, acquire_lock, digest_files, expand_user, read_json, write_json
from cxr_tf.runs import NOT_COMPARED, Run, numbered_names, run_record
from cxr_tf.serving.store import model_config
from cxr_tf.study.presets import resolve
from cxr_tf.study.steps import Step

STUDY_FIELDS = {"runs": {"*": {"step": str, "run": str, "seconds": NUMBER}}}


class Study:
    """The runs of a study, recorded in `logs/study/<name>/study.json`.

    The file contains {"runs": {fingerprint: {"step", "run", "seconds"}}}, where `run` is
    <job>/<name> under logs/. Runs with earlier settings stay recorded, and are reused if the study
    is started with these settings again. The attribute `runs` maps the names of the steps that are
    done to their runs.
    """

    def __init__(self, logs: Path, name: str, data_fingerprint: str) -> None:
        self.directory = logs / "study" / name
        self.runs: dict[str, Run] = {}
        self._logs, self._data = logs, data_fingerprint
        self._file = self.directory / "study.json"
        self._taken: dict[str, str] = {}
        if self.directory.exists():
            acquire_lock(self.directory)  # before reading: another process may be writing
        self._known = self._read()

    def is_kept(self, step: Step, steps: Sequence[Step]) -> bool:
        """Return whether there is a finished run with the step's current settings."""
        runs = dict(self.runs)
        for earlier in steps[: steps.index(step)]:
            # The settings of this step may name the runs of earlier steps.
            if earlier.name not in runs and not earlier.skipped:
                run = self._finished(earlier, runs)
                if run is not None:
                    runs[earlier.name] = run
        return self._finished(step, runs) is not None

    def _finished(self, step: Step, runs: dict[str, Run]) -> Run | None:
        try:
            settings = step.settings(runs)
        except KeyError:  # they name a run that does not exist yet
            return None
        known = self._known.get(self._fingerprint(step.job, settings))
        run = Run(self._logs / known["run"]) if known else None
        return run if run and run.finished and _exported(run, settings) else None

    def take(self, step: Step) -> None:
        """Use the step's finished run in the study."""
        key = self._fingerprint(step.job, step.settings(self.runs))
        self._taken[step.name] = key
        self.runs[step.name] = Run(self._logs / self._known[key]["run"])

    def start(self, settings: RunStudy, catalog: data_catalog.Catalog) -> None:
        """Create the study's directory, and record its settings there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        acquire_lock(self.directory)
        self._known = self._read()
        config = run_record("study", settings.name, settings, catalog)
        write_json(self.directory / "config.json", {**config, "command": command(settings)})

    def task_of(self, step: Step) -> tuple[Any, str]:
        """Return a step's settings, and the name of the run to use.

        That is an unfinished run to continue, or else a new one, which is recorded.
        """
        settings = step.settings(self.runs)
        key = self._fingerprint(step.job, settings)
        known = self._known.get(key)
        if known and Run(self._logs / known["run"]).finished:  # its exported model is gone
            known = None
        if not known:
            self._known[key] = {
                "step": step.name,
                "run": f"{step.job}/{self._free_name(step, settings)}",
                "seconds": 0.0,
            }
            self._save()
        return settings, Path(self._known[key]["run"]).name

    @contextlib.contextmanager
    def running(self, step: Step) -> Iterator[None]:
        """Add the duration of the block to the step's seconds; then use the step's finished run."""
        settings, _ = self.task_of(step)
        entry = self._known[self._fingerprint(step.job, settings)]
        # Until all steps are finished, the metrics of the study do not match its settings.
        (self.directory / "metrics.json").unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            yield
        finally:
            entry["seconds"] += time.perf_counter() - started
            self._save()
        self.take(step)

    def seconds(self, step: Step) -> float:
        """Return the duration of a step in seconds, added up over interruptions."""
        return self._known[self._taken[step.name]]["seconds"]

    def finish(self, settings: RunStudy, steps: Sequence[Step]) -> None:
        """Write `metrics.json`: the runs, their durations, and the reasons for skipped steps."""
        Run(self.directory).write_metrics(
            {
                "steps": [
                    {"name": s.name, "title": s.title, "skipped": s.skipped}
                    if s.skipped
                    else {
                        "name": s.name,
                        "title": s.title,
                        "run": self._known[self._taken[s.name]]["run"],
                        "seconds": self.seconds(s),
                    }
                    for s in steps
                ],
                "machine": machine(),
            }
        )

    def _read(self) -> dict[str, dict[str, Any]]:
        return read_json(self._file, STUDY_FIELDS)["runs"] if self._file.exists() else {}

    def _save(self) -> None:
        write_json(self._file, {"runs": self._known})

    def _fingerprint(self, job: str, settings: Any) -> str:
        """Return a digest of a job, its settings, its data, and the content of its weights."""
        logs = f"{self._logs}{os.sep}"
        # Locations are left out: a moved folder of logs or data contains the same study.
        compared = {
            key: [_within(v, logs) for v in value]
            if isinstance(value, tuple)
            else _within(value, logs)
            for key, value in dataclasses.asdict(settings).items()
            if key not in (*NOT_COMPARED, "check")
        }
        for key in compared:
            file = expand_user(getattr(settings, key)) if key.endswith("weights") else None
            if file is not None and file.is_file():
                compared[key] = [
                    compared[key],
                    _content_digest(str(file), file.stat().st_mtime_ns),
                ]
        text = json.dumps([job, compared, self._data], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _free_name(self, step: Step, settings: Any) -> str:
        folders = [self._logs / step.job]
        if hasattr(settings, "saved_models"):
            folders.append(Path(settings.saved_models))
        names = numbered_names(step.run_name)
        return next(n for n in names if not any((folder / n).exists() for folder in folders))


def _exported(run: Run, settings: Any) -> bool:
    """Return whether the exported model of a finished run exists; True if its job exports none."""
    if not run.metrics.get("model", {}).get("saved_model"):
        return True
    return bool(model_config.model_versions(Path(settings.saved_models) / run.directory.name))


def _within(value: Any, logs: str) -> Any:
    return value.removeprefix(logs) if isinstance(value, str) else value


@functools.cache
def _content_digest(path: str, modified: int) -> str:
    """Return the digest of a file, computed once for each modification time."""
    return digest_files(path)


def command(settings: RunStudy) -> str:
    """Return the command line that repeats a study; `settings` are resolved."""
    words = ["python", "scripts/run_study.py"]
    default = resolve(RunStudy(preset=settings.preset))
    for field in dataclasses.fields(RunStudy):
        value = getattr(settings, field.name)
        always = field.name in ("data", "preset", "name", "seed")
        if always or value != getattr(default, field.name):
            flag = "--" + field.name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def machine() -> dict[str, Any]:
    """Return the processors, architecture, system and GPUs of this machine."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")
        ],
    }
