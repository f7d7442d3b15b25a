"""All five jobs on one catalogue, and the report of them.

    python scripts/run_study.py --preset quickstart
    python scripts/run_study.py --data chest_xray --name mine

What is kept. Each step has its own run directory. `study.json` remembers, for the fingerprint of a
step's settings and data, which one. A finished step with the same fingerprint is not done again; a
changed one gets a run of a new name, with -2, -3, ... behind it. What is built on another run names
it in its settings, so a new classifier brings new neighbours and new heatmaps, and nothing else.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import keras
import tensorflow as tf

from cxr_tf import (
    anomaly,
    classification,
    comparison,
    evaluation,
    neighbors,
    served_check,
    store,
)
from cxr_tf.data import catalog as catalogs
from cxr_tf.data.inspection import inspect_images, warnings
from cxr_tf.errors import UserError
from cxr_tf.explain import explanation, occlusion
from cxr_tf.models import autoencoder, backbones
from cxr_tf.models.classifier import build_classifier
from cxr_tf.paths import expanded
from cxr_tf.preparation import draw_page
from cxr_tf.report import NAMES, write_report
from cxr_tf.runs import (
    NOT_COMPARED,
    Run,
    check_name,
    claim,
    numbered,
    open_run,
    read_json,
    record,
    write_json,
)
from cxr_tf.settings import (
    BackboneName,
    CheckServed,
    CompareBackbones,
    Explain,
    FitKnn,
    PrepareData,
    RunStudy,
    TrainAutoencoder,
    TrainClassifier,
    TrainingBudget,
    check_numbers,
)
from cxr_tf.training import duration, resolve_precision

log = logging.getLogger(__name__)

LONGEST_NAME = 60  # of a study: the names of its runs are longer, and folders

QUESTIONS = {"binary": "healthy or pneumonia", "three_class": "healthy, bacterial or viral"}

# What a job takes besides its training steps: tracing, export, figures, intervals. Seconds on two
# cores, from quickstart; only ever shown as "about".
OVERHEAD = {"resnet50": 40.0, "vgg16": 15.0, "alexnet": 15.0, "knn": 20.0, "autoencoder": 15.0}


@dataclass(frozen=True)
class Preset:
    """What a preset settles; None leaves a job its default.

    0 epochs of a task: its classifiers are those of the binary task with a new last layer, a
    logistic regression on their embedding.
    """

    image_size: int | None = None
    batch_size: int | None = None
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    resamples: int | None = None
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    autoencoder_image_size: int | None = None
    autoencoder_batch_size: int | None = None
    autoencoder_epochs: int | None = None
    neighbours_of: tuple[str, ...] = ("binary", "three_class")
    heatmaps: int | None = None


PRESETS = {
    "quickstart": Preset(
        image_size=64,
        batch_size=16,
        epochs={"binary": 2, "three_class": 0},
        resamples=200,
        weights=dict.fromkeys(NAMES, "none"),
        autoencoder_image_size=128,
        # Two hundred healthy images in batches of 16 are too few steps for it to learn anything.
        autoencoder_batch_size=4,
        autoencoder_epochs=5,
        neighbours_of=("binary",),
        heatmaps=8,
    ),
    "full": Preset(),
}


@dataclass(frozen=True)
class Step:
    """One job: where it writes, what it is given, and the public function that does it.

    `settings` makes them from the runs of the steps before, which is where the chosen classifier
    is known from; `work` takes them and the run's name. `seconds` estimates the time, for which
    `network` must have been measured. `skipped` is the reason to leave the step out.
    """

    name: str
    title: str
    job: str
    run_name: str
    settings: Callable[[dict[str, Run]], Any]
    work: Callable[[Any, str], Any]
    seconds: Callable[["Speed"], float] = lambda speed: 0.0
    network: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Speed:
    """Seconds for one image, by network: in a training step, and in inference."""

    training: dict[str, float]
    inference: dict[str, float]


def run_study(settings: RunStudy) -> Path:
    """Does all that is not done yet, writes the report, returns its path.

    Raises UserError on a user's mistake, before anything is written wherever it can be known
    before.
    """
    settings = resolve(settings)
    # Every job traces its functions once; TensorFlow takes those of a dozen jobs for one in a loop.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    store.check_saved_models(settings.saved_models)
    catalog = read_catalog(settings)
    study = Study(Path(settings.logs), settings.name, catalog.fingerprint())
    images = Images(settings, catalog)
    steps = plan(settings, catalog, images)
    todo = [s for s in steps if not s.skipped and not study.is_kept(s, steps)]

    # ------------------------------------------------------------------ what will be done
    estimates = dict.fromkeys([s.name for s in steps], 0.0)
    if any(s.network for s in todo):
        images.load()  # a file that cannot be read, and a leak, stop a study here
    speed = measure([s.network for s in todo if s.network], settings)
    estimates |= {s.name: s.seconds(speed) for s in todo}
    log.info("%s", plan_table(settings, steps, [s.name for s in todo], estimates))

    # ------------------------------------------------------------------ step by step
    study.begin(settings, catalog)
    spent = foreseen = 0.0
    for number, step in enumerate(steps, 1):
        if step.skipped:
            continue
        if study.is_kept(step, steps):
            study.take(step)
            continue
        # What is left goes by how wrong the estimates of trainings were so far.
        pace = spent / foreseen if foreseen else 1.0
        left = pace * sum(estimates[s.name] for s in steps[number - 1 :])
        log.info(
            "\n[%d/%d] %s: %s of about %s left",
            *(number, len(steps), step.title, duration(pace * estimates[step.name])),
            duration(left),
        )
        try:
            with study.running(step):
                step.work(*study.task_of(step))
        except KeyboardInterrupt:
            log.info("stopped; what is finished is kept, and the same command goes on")
            raise
        if step.network:
            spent, foreseen = spent + study.seconds(step), foreseen + estimates[step.name]
        keras.backend.clear_session()

    # ------------------------------------------------------------------ report
    study.finish(settings, steps)
    path = write_report(study.directory)
    log.info("\nreport: %s", path)
    return path


# ---------------------------------------------------------------------- what is asked for


def resolve(settings: RunStudy) -> RunStudy:
    """Fills in what was left to the preset; UserError for a value that no job would take."""
    preset = PRESETS[settings.preset]
    budget = TrainingBudget()
    weights = {
        f"{b}_weights": getattr(settings, f"{b}_weights")
        or preset.weights.get(b, getattr(CompareBackbones(), f"{b}_weights"))
        for b in get_args(BackboneName)
    }
    settings = replace(
        settings,
        name=settings.name or settings.preset,
        image_size=_first(settings.image_size, preset.image_size, budget.image_size),
        batch_size=_first(settings.batch_size, preset.batch_size, budget.batch_size),
        resamples=_first(settings.resamples, preset.resamples, budget.resamples),
        autoencoder_epochs=preset.autoencoder_epochs
        if settings.autoencoder_epochs is None
        else settings.autoencoder_epochs,
        **weights,
    )
    check_name(settings.name)
    if len(settings.name) > LONGEST_NAME:
        raise UserError(f"--name is longer than {LONGEST_NAME} characters")
    if settings.image_size < backbones.SMALLEST_SIZE:  # type: ignore[operator]
        raise UserError(f"--image-size must be at least {backbones.SMALLEST_SIZE}")
    check_numbers(settings)
    for task in QUESTIONS:
        check_numbers(training_budget(settings, task))
    if settings.epochs == 0 and "none" in weights.values():
        raise UserError("--epochs 0 trains the head alone, which needs weights for every backbone")
    return settings


def training_budget(settings: RunStudy, task: str) -> TrainingBudget:
    """What every classifier of a task is given."""
    epochs = PRESETS[settings.preset].epochs.get(task, TrainingBudget().epochs)
    return TrainingBudget(
        data=settings.data,
        task=task,  # type: ignore[arg-type]
        image_size=settings.image_size,  # type: ignore[arg-type]
        batch_size=settings.batch_size,  # type: ignore[arg-type]
        epochs=_first(settings.epochs, epochs),
        resamples=settings.resamples,  # type: ignore[arg-type]
        seed=settings.seed,
        logs=settings.logs,
        saved_models=settings.saved_models,
        resume=True,
        allow_leakage=settings.allow_leakage,
        skip_unreadable=settings.skip_unreadable,
    )


def read_catalog(settings: RunStudy) -> catalogs.Catalog:
    """The catalogue of the study; UserError where it cannot be told healthy from pneumonia."""
    catalog = catalogs.open_catalog(settings.data, seed=settings.seed)
    log.info(catalogs.describe(catalog))
    if unknown := set(catalog.findings) - {"normal", "pneumonia", "bacterial", "viral"}:
        raise UserError(
            f"{settings.data}: label '{min(unknown)}' is neither normal nor a pneumonia, which is "
            "what a study is about; for labels of your own use compare_backbones.py --task labels"
        )
    catalogs.check(catalog, task="binary", allow_leakage=settings.allow_leakage)
    return catalog


class Images:
    """The decoded radiographs, read when a training first asks for them."""

    def __init__(self, settings: RunStudy, catalog: catalogs.Catalog) -> None:
        self._settings, self._catalog = settings, catalog
        self._data: evaluation.Data | None = None

    def load(self) -> evaluation.Data:
        """All of them, with the labels of the binary task."""
        if self._data is None:
            size = self._settings.image_size
            assert size is not None
            catalog, images = evaluation.decode(
                self._catalog, size, skip=self._settings.skip_unreadable
            )
            catalogs.check(catalog, task="binary", allow_leakage=self._settings.allow_leakage)
            classes = catalog.classes("binary")
            self._data = evaluation.Data(catalog, images, catalog.labels("binary"), classes)
        return self._data

    def of_task(self, task: str) -> evaluation.Data:
        """The same images with the labels of a task."""
        data = self.load()
        catalogs.check(data.catalog, task=task, allow_leakage=self._settings.allow_leakage)
        return replace(data, labels=data.catalog.labels(task), classes=data.catalog.classes(task))


# ---------------------------------------------------------------------- the steps


def plan(settings: RunStudy, catalog: catalogs.Catalog, images: Images) -> list[Step]:
    """All steps in their order, those that these data do not allow with the reason."""
    counts = {s: len(catalog.rows(s)) for s in catalogs.SPLITS}
    refused = {task: _refusal(catalog, task) for task in QUESTIONS}
    healthy = sum(r.split == "train" and r.finding == "normal" for r in catalog.radiographs)

    def inspect(own: PrepareData, run_name: str) -> Run:
        return inspect_data(own, catalog, run_name)

    def train(own: TrainClassifier, run_name: str) -> Run:
        return classification.train_and_evaluate(
            replace(own, name=run_name), images.of_task(own.task)
        )

    steps = [
        Step(
            name="data",
            title="look for problems in the data",
            job="data",
            run_name=f"{settings.name}-data",
            settings=lambda runs: PrepareData(
                check=settings.data, seed=settings.seed, logs=settings.logs
            ),
            work=inspect,
            seconds=lambda speed: 5 + 0.004 * len(catalog),
        )
    ]
    for task, question in QUESTIONS.items():
        label = task.replace("_", "-")
        for backbone in get_args(BackboneName):
            steps.append(
                Step(
                    name=f"{label}-{backbone}",
                    title=f"train {NAMES[backbone]}: {question}",
                    job="classifier",
                    run_name=f"{settings.name}-{label}-{backbone}",
                    settings=functools.partial(classifier_settings, settings, task, backbone),
                    work=train,
                    seconds=functools.partial(
                        _classifier_seconds, settings, task, backbone, counts
                    ),
                    network=backbone,
                    skipped=refused[task],
                )
            )
        steps.append(
            Step(
                name=label,
                title=f"compare the three on test: {question}",
                job="compare",
                run_name=f"{settings.name}-{label}",
                settings=functools.partial(comparison_settings, settings, task),
                work=named(comparison.compare),
                seconds=lambda speed: 4.0,
                skipped=refused[task],
            )
        )
    for task in PRESETS[settings.preset].neighbours_of:
        label = task.replace("_", "-")
        steps.append(
            Step(
                name=f"{label}-knn",
                title=f"similar cases and t-SNE: {QUESTIONS[task]}",
                job="knn",
                run_name=f"{settings.name}-{label}-knn",
                settings=functools.partial(neighbours_settings, settings, label),
                work=named(neighbors.fit_knn),
                # Embedded three times: of the images, of validation stressed, and before training.
                seconds=lambda speed: (
                    OVERHEAD["knn"]
                    + len(catalog) * (0.015 + 2.5 * max(speed.inference.values(), default=0.0))
                ),
                skipped=refused[task],
            )
        )
    detector = autoencoder_settings(settings)
    steps.append(
        Step(
            name="autoencoder",
            title="anomaly detection: learn what is healthy",
            job="autoencoder",
            run_name=f"{settings.name}-autoencoder",
            settings=functools.partial(_always, detector),
            work=named(anomaly.train_and_evaluate),
            seconds=functools.partial(_autoencoder_seconds, detector, counts, healthy),
            network="autoencoder",
            skipped=""
            if healthy >= anomaly.FEWEST_HEALTHY
            else f"{healthy} healthy training images are fewer than {anomaly.FEWEST_HEALTHY}",
        )
    )
    patches = occlusion.make_grid(settings.image_size or backbones.SMALLEST_SIZE).count
    steps.append(
        Step(
            name="heatmaps",
            title="heatmaps: where the chosen network looks",
            job="explain",
            run_name=f"{settings.name}-heatmaps",
            settings=functools.partial(heatmaps_settings, settings),
            work=named(explanation.explain),
            # About half of the multiplications behind each patch are saved.
            seconds=lambda speed: (
                10.0
                + _heatmaps(settings) * patches * max(speed.inference.values(), default=0.0) / 2
            ),
        )
    )
    exported = [
        s.name for s in steps if not s.skipped and s.job in ("compare", "knn", "autoencoder")
    ]
    steps.append(
        Step(
            name="served",
            title="ask the exported models again, as TF Serving would",
            job="served",
            run_name=f"{settings.name}-served",
            settings=functools.partial(served_settings, settings, tuple(exported)),
            work=named(served_check.check_served),
            seconds=lambda speed: (
                15.0 + 5 * counts["test"] * max(speed.inference.values(), default=0.0)
            ),
        )
    )
    return steps


def classifier_settings(
    settings: RunStudy, task: str, backbone: str, runs: dict[str, Run]
) -> TrainClassifier:
    """What one classifier is trained with."""
    weights = getattr(settings, f"{backbone}_weights")
    if takes_over(settings, task):
        weights = str(runs[f"binary-{backbone}"].directory / "model.keras")
    return TrainClassifier(
        **dataclasses.asdict(training_budget(settings, task)),
        backbone=backbone,  # type: ignore[arg-type]
        weights=weights,
    )


def takes_over(settings: RunStudy, task: str) -> bool:
    """Whether the classifiers of a task are those of the binary one with a new last layer."""
    return PRESETS[settings.preset].epochs.get(task) == 0 and settings.epochs is None


def comparison_settings(settings: RunStudy, task: str, runs: dict[str, Run]) -> CompareBackbones:
    """The comparison of the runs that trained the three."""
    names = [f"{task.replace('_', '-')}-{b}" for b in get_args(BackboneName)]
    return CompareBackbones(
        **dataclasses.asdict(training_budget(settings, task)),
        **{f"{b}_weights": getattr(settings, f"{b}_weights") for b in get_args(BackboneName)},
        runs=tuple(str(runs[name].directory) for name in names),
    )


def neighbours_settings(settings: RunStudy, label: str, runs: dict[str, Run]) -> FitKnn:
    """Nearest neighbours in the embedding of the classifier that a comparison chose."""
    assert settings.batch_size and settings.resamples
    return FitKnn(
        classifier=chosen(runs[label]),
        batch_size=settings.batch_size,
        resamples=settings.resamples,
        resume=True,
        **_common(settings),
        saved_models=settings.saved_models,
        allow_leakage=settings.allow_leakage,
    )


def autoencoder_settings(settings: RunStudy) -> TrainAutoencoder:
    """The autoencoder, at its own size: it needs less than classifiers do."""
    assert settings.resamples
    preset = PRESETS[settings.preset]
    return TrainAutoencoder(
        image_size=_first(preset.autoencoder_image_size, TrainAutoencoder().image_size),
        batch_size=_first(preset.autoencoder_batch_size, TrainAutoencoder().batch_size),
        epochs=settings.autoencoder_epochs,
        resamples=settings.resamples,
        resume=True,
        **_common(settings),
        saved_models=settings.saved_models,
        allow_leakage=settings.allow_leakage,
    )


def heatmaps_settings(settings: RunStudy, runs: dict[str, Run]) -> Explain:
    """Heatmaps of the classifier chosen for healthy or pneumonia."""
    return Explain(
        classifier=chosen(runs["binary"]), count=_heatmaps(settings), **_common(settings)
    )


def served_settings(
    settings: RunStudy, steps: tuple[str, ...], runs: dict[str, Run]
) -> CheckServed:
    """What people will serve: the chosen classifiers, their neighbours, the autoencoder."""
    folders = (
        chosen(runs[s]) if runs[s].directory.parent.name == "compare" else str(runs[s].directory)
        for s in steps
    )
    return CheckServed(runs=tuple(folders), logs=settings.logs)


def _common(settings: RunStudy) -> dict[str, Any]:
    return {k: getattr(settings, k) for k in ("data", "seed", "logs", "skip_unreadable")}


def _heatmaps(settings: RunStudy) -> int:
    return _first(PRESETS[settings.preset].heatmaps, Explain("").count)


def _always(settings: Any, runs: dict[str, Run]) -> Any:
    """The settings of a step that depends on no other."""
    return settings


def chosen(compared: Run) -> str:
    """Folder of the classifier that a finished comparison chose on validation."""
    logs = compared.directory.parent.parent
    return str(logs / "classifier" / compared.metrics()["chosen"])


def named(job: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    """A job as a step calls it: with settings, and the name of its run besides."""
    return lambda settings, run_name: job(replace(settings, name=run_name))


def _refusal(catalog: catalogs.Catalog, task: str) -> str:
    """Why a task cannot be asked of these data; empty where it can."""
    try:
        # Leaks are another matter, and settled before.
        catalogs.check(catalog, task=task, allow_leakage=True)
    except UserError as error:
        return str(error).removeprefix(f"{catalog.source}: ")
    return ""


def _classifier_seconds(
    settings: RunStudy, task: str, backbone: str, counts: dict[str, int], speed: Speed
) -> float:
    training, inference = speed.training[backbone], speed.inference[backbone]
    epochs = training_budget(settings, task).epochs
    judged = 2 * counts["val"] * inference  # as they are, and stressed
    seconds = epochs * (counts["train"] * training + judged)
    if takes_over(settings, task) or getattr(settings, f"{backbone}_weights") != "none":
        # The head, on features of the frozen backbone.
        seconds += counts["train"] * inference + judged
    overhead = OVERHEAD[backbone] if epochs else OVERHEAD[backbone] / 2  # no training step to trace
    return overhead + seconds + judged + counts["test"] * inference


def _autoencoder_seconds(
    one: TrainAutoencoder, counts: dict[str, int], healthy: int, speed: Speed
) -> float:
    training, inference = speed.training["autoencoder"], speed.inference["autoencoder"]
    epoch = healthy * training + counts["val"] * inference
    epochs = anomaly.epochs_of(one, healthy)
    # Every score of validation in three versions.
    judged = (
        (3 * counts["val"] + counts["test"]) * len(autoencoder.scores_of(one.model)) * inference
    )
    return OVERHEAD["autoencoder"] + epochs * epoch + judged


def _first(*values: int | None) -> int:
    return next(v for v in values if v is not None)


# ---------------------------------------------------------------------- what is kept


class Study:
    """Which run did which step, in `logs/study/<name>/study.json`, and which are taken now.

    {"runs": {fingerprint: {"step", "run", "seconds"}}}; `run` is <job>/<name> under logs/. Runs of
    former settings stay in it: who goes back to those finds them done.
    """

    def __init__(self, logs: Path, name: str, data_fingerprint: str) -> None:
        self.directory = logs / "study" / name
        self.runs: dict[str, Run] = {}
        self._logs, self._data = logs, data_fingerprint
        self._file = self.directory / "study.json"
        self._taken: dict[str, str] = {}
        if self.directory.exists():
            claim(self.directory)  # before it is read: another study may be adding to it
        self._known = self._read()

    def is_kept(self, step: Step, steps: Sequence[Step]) -> bool:
        """Whether a finished run of the step's present settings is there."""
        runs = dict(self.runs)
        for before in steps[: steps.index(step)]:
            # What stands before it and is not done yet may change its settings.
            if before.name not in runs and not before.skipped:
                found = self._finished(before, runs)
                if found is not None:
                    runs[before.name] = found
        return self._finished(step, runs) is not None

    def _finished(self, step: Step, runs: dict[str, Run]) -> Run | None:
        try:
            settings = step.settings(runs)
        except KeyError:  # a run that they name is not there yet
            return None
        known = self._known.get(self._fingerprint(step.job, settings))
        run = Run(self._logs / known["run"]) if known else None
        return run if run and run.finished and _exported(run, settings) else None

    def take(self, step: Step) -> None:
        """Takes the step's finished run as it is."""
        key = self._fingerprint(step.job, step.settings(self.runs))
        self._taken[step.name] = key
        self.runs[step.name] = Run(self._logs / self._known[key]["run"])

    def begin(self, settings: RunStudy, catalog: catalogs.Catalog) -> None:
        """Writes what the study was asked for."""
        self.directory.mkdir(parents=True, exist_ok=True)
        claim(self.directory)
        self._known = self._read()
        config = record("study", settings.name, settings, catalog)
        write_json(self.directory / "config.json", {**config, "command": command(settings)})

    def task_of(self, step: Step) -> tuple[Any, str]:
        """The settings of a step and the name of its run: that of an interrupted one, or a new."""
        settings = step.settings(self.runs)
        key = self._fingerprint(step.job, settings)
        known = self._known.get(key)
        if known and Run(self._logs / known["run"]).finished:  # what it exported is gone
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
        """Counts the step's seconds, over interruptions too; takes its run once it is finished."""
        settings, _ = self.task_of(step)
        entry = self._known[self._fingerprint(step.job, settings)]
        # Until all is done again, the numbers of the study are not those of its settings.
        (self.directory / "metrics.json").unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            yield
        finally:
            entry["seconds"] += time.perf_counter() - started
            self._save()
        self.take(step)

    def seconds(self, step: Step) -> float:
        """How long the step took."""
        return self._known[self._taken[step.name]]["seconds"]

    def finish(self, settings: RunStudy, steps: Sequence[Step]) -> None:
        """`metrics.json`: the runs of the study, their times, and what was left out and why."""
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
        return read_json(self._file)["runs"] if self._file.exists() else {}

    def _save(self) -> None:
        write_json(self._file, {"runs": self._known})

    def _fingerprint(self, job: str, settings: Any) -> str:
        """Hash of a job, its settings, its data, and the content of its weights file."""
        logs = f"{self._logs}{os.sep}"
        # Not of where things are: a moved folder of logs or data holds the same study.
        told = {
            key: [_within(v, logs) for v in value]
            if isinstance(value, tuple)
            else _within(value, logs)
            for key, value in dataclasses.asdict(settings).items()
            if key not in (*NOT_COMPARED, "check")
        }
        for key in told:
            file = expanded(getattr(settings, key)) if key.endswith("weights") else None
            if file is not None and file.is_file():
                told[key] = [told[key], _content_hash(str(file), file.stat().st_mtime_ns)]
        text = json.dumps([job, told, self._data], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _free_name(self, step: Step, settings: Any) -> str:
        places = [self._logs / step.job]
        if hasattr(settings, "saved_models"):
            places.append(Path(settings.saved_models))
        names = numbered(step.run_name)
        return next(n for n in names if not any((place / n).exists() for place in places))


def _exported(run: Run, settings: Any) -> bool:
    """Whether the model of a finished run, where its job exports one, is where it is asked for."""
    if not run.metrics().get("model", {}).get("saved_model"):
        return True
    return bool(store.versions(Path(settings.saved_models) / run.directory.name))


def _within(value: Any, logs: str) -> Any:
    return value.removeprefix(logs) if isinstance(value, str) else value


@functools.cache
def _content_hash(path: str, changed: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def command(settings: RunStudy) -> str:
    """The command line that repeats a study; `settings` as resolved."""
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
    """What the study ran on."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")
        ],
    }


# ---------------------------------------------------------------------- how long it will take


def measure(networks: Sequence[str], settings: RunStudy) -> Speed:
    """Times a training step and an inference of each network on a few images and on many.

    Outside of a compiled function, which would cost more to trace than all else here. What each
    operation costs by itself, however few the images, then drops out with the difference.

    Raises UserError for weights that cannot be had, which is better known now than after the hours
    of the network before.
    """
    training, inference = {}, {}
    keras.utils.set_random_seed(settings.seed)
    for network in dict.fromkeys(networks):
        if network == "autoencoder":
            preset = PRESETS[settings.preset]
            size = _first(preset.autoencoder_image_size, TrainAutoencoder().image_size)
            model, channels = autoencoder.build_network("restoring", size), 1
            size = int(model.input_shape[1])
            batch_size = TrainAutoencoder().batch_size
        else:
            assert settings.image_size and settings.batch_size
            size, channels, batch_size = settings.image_size, 3, settings.batch_size
            pretrained = getattr(settings, f"{network}_weights") != "none"
            model = classification.trainer_of(
                _classifier(network, settings), network, pretrained=pretrained
            )
        count = int(min(batch_size, max(4, 8 * (224 / size) ** 2)))
        images = tf.random.stateless_uniform([count, size, size, channels], [0, 1]) * 255
        training[network] = _seconds_an_image(functools.partial(_training_step, model), images)
        inference[network] = _seconds_an_image(functools.partial(model, training=False), images)
        del model
        keras.backend.clear_session()
    return Speed(training, inference)


def _seconds_an_image(work: Callable[[tf.Tensor], Any], images: tf.Tensor) -> float:
    few, many = images[: len(images) // 4], images
    for batch in (many, few):  # the first of each shape, for which libraries get ready
        work(batch)
    seconds = []
    for batch in (few, many):
        started = time.perf_counter()
        work(batch)
        seconds.append(time.perf_counter() - started)
    # A machine that is busy with other work may have been held up at the few.
    return max((seconds[1] - seconds[0]) / (len(many) - len(few)), seconds[1] / len(many) / 4)


def _classifier(backbone: str, settings: RunStudy) -> keras.Model:
    """A classifier as training would begin with it."""
    assert settings.image_size
    weights = getattr(settings, f"{backbone}_weights")
    entry = backbones.backbone(backbone)
    gains = entry.gains_in_bfloat16(settings.image_size, weights != "none")
    precision = resolve_precision("auto", gains=gains)
    model = build_classifier(
        backbone, classes=2, image_size=settings.image_size, precision=precision
    )
    backbones.load_weights(model, backbone, weights)
    blocks = len(entry.blocks) if weights == "none" else entry.tuned_blocks
    backbones.freeze(model, backbone, trainable_blocks=blocks, batch_norm=weights == "none")
    return model


def _training_step(model: keras.Model, images: tf.Tensor) -> None:
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        parts = outputs.values() if isinstance(outputs, dict) else [outputs]
        loss = tf.add_n([tf.reduce_mean(tf.cast(part, tf.float32) ** 2) for part in parts])
    tape.gradient(loss, [v.value for v in model.trainable_variables])


def plan_table(
    settings: RunStudy, steps: Sequence[Step], todo: Sequence[str], estimates: dict[str, float]
) -> str:
    """What will be done and about how long, for the screen."""
    total = sum(estimates[name] for name in todo)
    said = f"about {duration(total)}, measured on a training step of each network"
    lines = [f"\nstudy {settings.name}: {said if todo else 'everything is done'}"]
    width = max(len(s.title) for s in steps) + 3
    for number, step in enumerate(steps, 1):
        state = f"about {duration(estimates[step.name])}"
        if step.skipped:
            state = f"left out: {step.skipped}"
        elif step.name not in todo:
            state = "done before, kept"
        lines.append(f"  {number:>2}  {step.title:<{width}}{state}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- the data


def inspect_data(settings: PrepareData, catalog: catalogs.Catalog, name: str) -> Run:
    """Counts, copies, shortcuts and samples of the catalogue: logs/data/<name>/."""
    found = inspect_images(catalog)
    said = warnings(found)
    for line in said:
        log.info("  warning: %s", line)
    run = open_run(settings.logs, "data", name, settings, catalog)
    rows = catalog.radiographs
    draw_page(run, found)
    splits = {split: [r for r in rows if r.split == split] for split in catalogs.SPLITS}
    run.write_metrics(
        {
            "images": len(catalog),
            "patients": len(set(catalog.patients)),
            "findings": list(catalog.findings),
            "splits": {
                split: {
                    "images": len(own),
                    "patients": len({r.patient for r in own}),
                    **{f: sum(r.finding == f for r in own) for f in catalog.findings},
                }
                for split, own in splits.items()
            },
            "unreadable": len(found.unreadable),
            "identical_copies": len(catalog) - len({r.digest for r in rows}),
            "near_duplicates": len(found.near),
            "leaks": len(catalogs.leakage(catalog)),
            "without_patient": catalog.without_patient,
            "notes": catalogs.notes(catalog),
            "warnings": said,
            **{f"{s.measure}_auroc/{s.finding}": s.auroc for s in found.shortcuts},
        }
    )
    return run
