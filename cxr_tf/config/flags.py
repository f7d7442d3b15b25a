"""Flags that several commands share, their types, and their limits."""

from dataclasses import dataclass
from typing import Any, Literal

from cxr_tf.errors import UserError

Task = Literal["binary", "three_class", "labels"]


BackboneName = Literal["resnet50", "vgg16", "alexnet"]


Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]


Engine = Literal["auto", "tensorflow", "openvino"]


EnginePrecision = Literal["float32", "bfloat16", "int8"]


Split = Literal["train", "val", "test", "all"]


# The smallest value allowed, wherever a command has a flag of that name.
LEAST = {
    **{"seed": 0, "batch_size": 1, "epochs": 0, "patience": 1, "bootstrap_samples": 1, "count": 0},
    **{"augmentation": 0, "autoencoder_epochs": 1, "shard_size": 1, "workers": 1, "readers": 1},
    **{"retries": 0, "cpus_per_worker": 0, "gpus_per_worker": 0},
}


ABOVE_ZERO = ("learning_rate", "timeout", "worker_timeout")


LARGEST_SEED = 2**32 - 1


def check_numbers(settings: Any, **least: int) -> None:
    """Raise UserError for a number out of its range or not finite, naming the flag.

    least: where a command needs more than LEAST. None is a default that is resolved later.
    """

    def refuse(field: str, expected: str) -> None:
        flag = "--" + field.replace("_", "-")
        raise UserError(f"{flag} must be {expected}, not {getattr(settings, field)}")

    for field, smallest in {**LEAST, **least}.items():
        value = getattr(settings, field, None)
        if value is not None and not smallest <= value < float("inf"):
            refuse(field, f"at least {smallest}")
    for field in ABOVE_ZERO:
        value = getattr(settings, field, None)
        if value is not None and not 0 < value < float("inf"):
            refuse(field, "above 0")
    coverage = getattr(settings, "coverage", None)
    if coverage is not None and not 0.5 <= coverage < 1:
        refuse("coverage", "from 0.5 to below 1")
    if (getattr(settings, "seed", None) or 0) > LARGEST_SEED:
        refuse("seed", f"at most {LARGEST_SEED}")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run is written."""

    name: str = ""
    """Name of the run; the default is built from what the run is of."""
    logs: str = "logs"
    """Folder of all runs, and TensorBoard's --logdir."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which radiographs."""

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded, instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """How scores are computed."""

    bootstrap_samples: int = 1000
    """Bootstrap samples (of patients) behind each 95 % interval."""
    seed: int = 0
    """Seed of everything random: splits, training, bootstrap."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(RunFlags, DataFlags, ScoreFlags):
    """A job that trains on a catalogue and exports a model."""

    saved_models: str = "saved_models"
    """Folder of all exported models, which TF Serving serves."""
    resume: bool = False
    """Continue the interrupted run of this name; a finished one is left as it is."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    worker_timeout: float = 600.0
    """With several workers (TF_CONFIG): seconds to wait until all of them have started."""
