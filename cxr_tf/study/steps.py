"""A step of a study: one job, where it writes, and what it depends on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cxr_tf.runs import Run

# The classification tasks of a study, with their descriptions.
TASKS = {"binary": "healthy or pneumonia", "three_class": "healthy, bacterial or viral"}

BACKBONE_NAMES = {"resnet50": "ResNet50", "vgg16": "VGG16", "alexnet": "AlexNet"}


@dataclass(frozen=True)
class Step:
    """A step of a study.

    `settings` derives the job's settings from the runs of earlier steps, such as the selected
    classifier. `work` runs the job, given its settings and the name of its run. `seconds` estimates
    the duration from the measured speed of `network`. `skipped` is the reason why the step is
    skipped, or empty.
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
    """Seconds per image of a training step and of inference, for each network."""

    training: dict[str, float]
    inference: dict[str, float]


def label_of(task: str) -> str:
    """Return a task's label in the names of steps and runs: `three-class` for `three_class`."""
    return task.replace("_", "-")


def keep_settings(settings: Any, runs: dict[str, Run]) -> Any:
    """Return the settings unchanged, for a step that depends on no other."""
    return settings


def chosen(compared: Run) -> str:
    """Return the folder of the classifier that a comparison selected on the validation set."""
    logs = compared.directory.parent.parent
    return str(logs / "classifier" / compared.metrics["chosen"])


def named(job: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    """Adapt a job to `Step.work`, which also takes the name of the run."""
    return lambda settings, run_name: job(replace(settings, name=run_name))


def first_given(*values: int | None) -> int:
    """Return the first value that is not None."""
    return next(v for v in values if v is not None)
