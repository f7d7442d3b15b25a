"""A step of a study: one job, where it writes, and what it depends on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cxr_tf.runs import Run


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


def keep_settings(settings: Any, runs: dict[str, Run]) -> Any:
    """The settings of a step that depends on no other."""
    return settings


def chosen(compared: Run) -> str:
    """Folder of the classifier that a finished comparison chose on validation."""
    logs = compared.directory.parent.parent
    return str(logs / "classifier" / compared.metrics["chosen"])


def named(job: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    """A job as a step calls it: with settings, and the name of its run besides."""
    return lambda settings, run_name: job(replace(settings, name=run_name))


def first_given(*values: int | None) -> int:
    """Return the first value that is not None."""
    return next(v for v in values if v is not None)
