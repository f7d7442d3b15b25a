"""A finished KNN run on the embeddings of a small classifier."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from cxr_tf.config import FitKnn, TrainClassifier


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished KNN run, and the classifier run on which it is based."""

    settings: FitKnn
    classifier: Path
    run: Path
    model: Path

    @property
    def metrics(self) -> dict:
        return json.loads((self.run / "metrics.json").read_text())

    def embeddings(self) -> dict[str, np.ndarray]:
        with np.load(self.run / "embeddings.npz") as stored:
            return dict(stored)


def fit(phantoms: Path, backbone: str, root: Path) -> Fitted:
    """Train a classifier for two epochs, and fit nearest neighbours to its embeddings."""
    from cxr_tf.classification.train_classifier import train_classifier
    from cxr_tf.neighbors.fit_knn import fit_knn

    # One training image twice: the copy must not be indexed as a second neighbour.
    data = root / "phantoms"
    shutil.copytree(phantoms, data)
    original = min((data / "train" / "NORMAL").iterdir())
    shutil.copy(original, original.with_name(f"{original.stem}_copy{original.suffix}"))
    where = {"logs": str(root / "logs"), "saved_models": str(root / "saved_models")}
    classifier = train_classifier(
        TrainClassifier(
            data=str(data), backbone=backbone, weights="none", image_size=64, batch_size=16,
            epochs=2, precision="float32", bootstrap_samples=5, name="tiny", seed=3, **where,
        )
    )  # fmt: skip
    settings = FitKnn(
        classifier=str(classifier.directory),
        batch_size=16,
        bootstrap_samples=20,
        name="knn",
        **where,
    )
    run = fit_knn(settings)
    return Fitted(settings, classifier.directory, run.directory, root / "saved_models" / "knn")
