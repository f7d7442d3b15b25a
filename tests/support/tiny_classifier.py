"""Settings to train the tiny backbone, and patches that skip steps or preserve checkpoints."""

from pathlib import Path

import pytest

from cxr_tf.config import TrainClassifier


def tiny_settings(phantoms: Path, root: Path, **changed) -> TrainClassifier:
    settings = {
        "data": str(phantoms),
        "backbone": "tiny",
        "weights": "none",
        "image_size": 64,
        "batch_size": 16,
        "epochs": 3,
        "precision": "float32",
        "bootstrap_samples": 5,
        "name": "run",
        "logs": str(root / "logs"),
        "saved_models": str(root / "saved_models"),
    }
    return TrainClassifier(**(settings | changed))


def skip_figures_and_export(patch: pytest.MonkeyPatch) -> None:
    """Skip figures and export, which are slow and are tested on the finished run."""
    from cxr_tf import runs
    from cxr_tf.scoring import classifier
    from cxr_tf.serving import export

    patch.setattr(classifier, "draw_split", lambda *a, **k: None)
    patch.setattr(runs.Run, "write_figure", lambda *a, **k: None)
    patch.setattr(export, "export_classifier", lambda *a, **k: Path("nowhere/1"))


def keep_checkpoints(patch: pytest.MonkeyPatch) -> None:
    """Preserve the checkpoints of finished runs too, for comparison."""
    from cxr_tf.training.checkpoints import TrainingState

    patch.setattr(TrainingState, "remove", lambda self: None)
