"""Tests that two workers train the same model as one worker."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from cxr_tf.config import TrainClassifier
from cxr_tf.runs import Run

SCRIPT = Path(__file__).parents[1] / "support" / "worker_training.py"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def runs(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """The runs of a single process and of two workers, each in a separate folder."""
    from cxr_tf.classification.train_classifier import train_classifier

    root = tmp_path_factory.mktemp("workers")
    flags = {"epochs": 2, "batch_size": 7, "image_size": 64, "bootstrap_samples": 5}
    words = [w for k, v in flags.items() for w in ("--" + k.replace("_", "-"), str(v))]
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        out = root / f"worker{index}"
        places = ["--logs", str(out / "logs"), "--saved-models", str(out / "saved_models")]
        command = [sys.executable, str(SCRIPT), "--data", str(phantoms), *words, *places]
        processes.append(
            subprocess.Popen(
                [*command, "--weights", "none", "--precision", "float32", "--name", "run"],
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    alone = train_classifier(
        TrainClassifier(
            data=str(phantoms),
            backbone="tiny",  # type: ignore[arg-type]
            weights="none",
            precision="float32",
            name="run",
            logs=str(root / "alone/logs"),
            saved_models=str(root / "alone/saved_models"),
            **flags,  # type: ignore[arg-type]
        )
    )
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-2000:]
    assert not (root / "worker1").exists()  # only the chief writes
    return alone, Run(root / "worker0/logs/classifier/run")


def test_two_workers_train_the_same_weights_as_one(runs: tuple[Run, Run]) -> None:
    models = [keras.saving.load_model(r.directory / "model.keras", compile=False) for r in runs]
    for variable, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(other, variable, rtol=1e-5, atol=1e-5, err_msg=variable.path)


def test_two_workers_measure_the_same_scores_as_one(runs: tuple[Run, Run]) -> None:
    alone, together = (run.metrics for run in runs)
    assert len(alone["history"]) == 2
    for entry, other in zip(alone["history"], together["history"], strict=True):
        assert other == pytest.approx(entry, abs=1e-5)
    predictions = [run.predictions("test") for run in runs]
    assert predictions[0]["path"].tolist() == predictions[1]["path"].tolist()
    assert predictions[1]["pneumonia"] == pytest.approx(predictions[0]["pneumonia"], abs=1e-4)
