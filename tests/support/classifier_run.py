"""The folder of a finished classifier run, written without training."""

from pathlib import Path

import keras

from cxr_tf.data.loading import open_catalog
from cxr_tf.files import write_json

THRESHOLD = 0.4


def write_run(folder: Path, model: keras.Model, data: str) -> None:
    """Write the run folder of a binary classifier as train_classifier.py leaves it."""
    folder.mkdir()
    config = {
        "job": "classifier",
        "settings": {"data": data, "seed": 0},
        "data_fingerprint": open_catalog(data).fingerprint(),
    }
    write_json(folder / "config.json", config)
    facts = {"classes": ["normal", "pneumonia"], "task": "binary", "threshold": THRESHOLD}
    write_json(folder / "metrics.json", {"model": facts})
    keras.saving.save_model(model, folder / "model.keras")
