"""One frozen dataclass per command: the flags of its script, and what `config.json` records.

Shared flags are declared once, in the base classes of `flags`. A command that documents a shared
flag differently declares it again.
"""

from cxr_tf.config.data import ConvertAlexNetWeights, PrepareData
from cxr_tf.config.flags import (
    ABOVE_ZERO,
    LARGEST_SEED,
    LEAST,
    BackboneName,
    DataFlags,
    Engine,
    EnginePrecision,
    Precision,
    RunFlags,
    ScoreFlags,
    Split,
    Task,
    TrainingFlags,
    check_numbers,
)
from cxr_tf.config.models import CheckServed, Demo, Evaluate, Explain, Export, Predict, ScoreArchive
from cxr_tf.config.training import (
    CompareBackbones,
    FitKnn,
    RunStudy,
    TrainAutoencoder,
    TrainClassifier,
    TrainingBudget,
)

__all__ = [
    "ABOVE_ZERO",
    "LARGEST_SEED",
    "LEAST",
    "BackboneName",
    "CheckServed",
    "CompareBackbones",
    "ConvertAlexNetWeights",
    "DataFlags",
    "Demo",
    "Engine",
    "EnginePrecision",
    "Evaluate",
    "Explain",
    "Export",
    "FitKnn",
    "Precision",
    "Predict",
    "PrepareData",
    "RunFlags",
    "RunStudy",
    "ScoreArchive",
    "ScoreFlags",
    "Split",
    "Task",
    "TrainAutoencoder",
    "TrainClassifier",
    "TrainingBudget",
    "TrainingFlags",
    "check_numbers",
]
