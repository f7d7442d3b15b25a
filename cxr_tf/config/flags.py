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


# Smallest allowed values by flag, for every command that has the flag.
LEAST = {
    **{"seed": 0, "batch_size": 1, "epochs": 0, "patience": 1, "bootstrap_samples": 1, "count": 0},
    **{"augmentation": 0, "autoencoder_epochs": 1, "shard_size": 1, "workers": 1, "readers": 1},
    **{"retries": 0, "cpus_per_worker": 0, "gpus_per_worker": 0},
}


ABOVE_ZERO = ("learning_rate", "timeout", "worker_timeout")


LARGEST_SEED = 2**32 - 1


def check_numbers(settings: Any, **least: int) -> None:
    """Raise UserError, naming the flag, for a number that is out of range or not finite.

    least: the command's own limits, which replace those in LEAST. A value of None is not checked:
    its default is resolved later.
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
        refuse("coverage", "at least 0.5 and below 1")
    if (getattr(settings, "seed", None) or 0) > LARGEST_SEED:
        refuse("seed", f"at most {LARGEST_SEED}")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of the run directory."""

    name: str = ""
    """Name of the run; default: built from the other settings."""
    logs: str = "logs"
    """Folder of all runs (the --logdir of TensorBoard)."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Flags that select the radiographs."""

    data: str = "phantom"
    """Folder of radiographs, .csv list (path, label, and optionally patient and split), .npz of
    PneumoniaMNIST, or `phantom` for synthetic ones (see prepare_data.py)."""
    skip_unreadable: bool = False
    """Leave out files that cannot be decoded instead of stopping."""


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """Flags of the evaluation."""

    bootstrap_samples: int = 1000
    """Bootstrap samples (over patients) for each 95 % interval."""
    seed: int = 0
    """Seed of splits, training and bootstrap."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(RunFlags, DataFlags, ScoreFlags):
    """Flags of the commands that train and export a model."""

    saved_models: str = "saved_models"
    """Folder of all exported models, which TF Serving serves."""
    resume: bool = False
    """Resume the interrupted run of this name; a finished run is left unchanged."""
    allow_leakage: bool = False
    """Continue although a patient or an identical image appears in two splits."""
    worker_timeout: float = 600.0
    """With several workers (TF_CONFIG): seconds to wait until all of them have started."""
