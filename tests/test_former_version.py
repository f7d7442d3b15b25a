"""Runs and exported models of version 0.1.0 still load, predict, evaluate and resume.

`support/runs-0.1.0.tar.xz` holds what that version wrote for 90 phantoms of 64 pixels: a finished
classifier with the tiny backbone, its nearest neighbours, their SavedModels, a classifier that was
interrupted after its first epoch, and the record of an autoencoder.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cxr_tf.config import Evaluate, TrainClassifier
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.sources.phantoms import write_phantoms
from cxr_tf.runs import Run
from cxr_tf.serving.loading import load_served

ARCHIVE = Path(__file__).parent / "support" / "runs-0.1.0.tar.xz"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    write_phantoms(folder / "xrays", count=90, size=64, seed=11)
    return folder


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def test_records_are_read_under_present_names() -> None:
    settings = Run(Path("logs/classifier/tiny")).config["settings"]
    assert settings["bootstrap_samples"] == 20 and settings["operating_point"] == "0.5"
    autoencoder = Run(Path("logs/autoencoder/plain"))
    assert autoencoder.config["settings"]["operating_point"] == "youden"
    assert autoencoder.predictions("test")["score"].dtype == np.float64


@pytest.mark.parametrize("name", ["tiny", "tiny-knn"])
def test_exported_models_predict_what_was_measured(name: str) -> None:
    job = "knn" if name.endswith("-knn") else "classifier"
    measured = Run(Path("logs") / job / name).predictions("test")
    model = load_served(f"saved_models/{name}")
    predicted = model.predict(measured["path"].tolist())
    expected = np.stack([measured["normal"], measured["pneumonia"]], axis=1)
    np.testing.assert_allclose(predicted["probabilities"], expected, atol=1e-4)
    assert predicted["label"].tolist() == measured["predicted"].tolist()
    assert len(model.training_digests()) > 0


def test_an_exported_model_is_evaluated_on_the_split_of_its_training() -> None:
    from cxr_tf.evaluation.evaluate import evaluate

    run = evaluate(
        Evaluate(model="saved_models/tiny", data="xrays", bootstrap_samples=20, engine="tensorflow")
    )
    measured = Run(Path("logs/classifier/tiny")).metrics["test"]
    for metric in ("auroc", "accuracy", "recall", "specificity"):
        assert run.metrics["test"][metric] == pytest.approx(measured[metric], abs=1e-6)


def test_the_knn_pickle_loads() -> None:
    from cxr_tf.neighbors.storage import load_knn

    knn, manifest = load_knn("saved_models/tiny-knn")
    assert knn.predict_proba(np.zeros((1, manifest["embedding_width"]))).shape == (1, 2)


@pytest.mark.usefixtures("tiny_backbone")
def test_interrupted_training_resumes() -> None:
    from cxr_tf.classification.train_classifier import train_classifier

    # A few pixels of phantoms are rounded otherwise by other processors, so that the files differ.
    record = Path("logs/classifier/interrupted/config.json")
    config = json.loads(record.read_text())
    config["data_fingerprint"] = open_catalog("xrays").fingerprint()
    record.write_text(json.dumps(config))
    settings = TrainClassifier(
        data="xrays", weights="none", image_size=64, batch_size=16, epochs=2,
        bootstrap_samples=20, name="interrupted", resume=True,
    )  # fmt: skip
    run = train_classifier(dataclasses.replace(settings, backbone="tiny"))
    assert run.finished
    assert [entry["epoch"] for entry in run.metrics["history"]] == [1, 2]
