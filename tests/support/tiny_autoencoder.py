"""Settings of an autoencoder that trains in seconds."""

from pathlib import Path

from cxr_tf.config import TrainAutoencoder


def settings_for(data: Path, root: Path, **changed) -> TrainAutoencoder:
    settings = {
        "data": str(data),
        "image_size": 128,
        "score": "combined",
        "batch_size": 8,
        "epochs": 2,
        "bootstrap_samples": 5,
        "name": "run",
        "logs": str(root / "logs"),
        "saved_models": str(root / "saved_models"),
    }
    return TrainAutoencoder(**(settings | changed))
