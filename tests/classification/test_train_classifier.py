"""Tests of training one classifier: settings, interruptions, choices on validation, and the run."""

import csv
import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killed_training import killed_after_an_epoch
from scipy.special import softmax
from tiny_classifier import keep_checkpoints, skip_figures_and_export, tiny_settings

from cxr_tf.config import TrainClassifier
from cxr_tf.errors import UserError

SCORES = (
    *("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1"),
    *("auroc", "auprc", "brier", "ece", "loss"),
)


@pytest.fixture
def kept_state(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_checkpoints(monkeypatch)


def final_state(settings: TrainClassifier) -> dict[str, np.ndarray]:
    folder = Path(settings.logs) / "classifier" / settings.name
    with np.load(folder / "checkpoint.npz") as last, np.load(folder / "best.npz") as best:
        arrays = {**{k: last[k] for k in last}, **{k: best[k] for k in best}}
    del arrays["seconds"]
    return arrays


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    different = [k for k in first if first[k].tobytes() != second[k].tobytes()]
    assert not different


@pytest.mark.usefixtures("quick", "kept_state")
def test_same_seed_gives_identical_weights(
    undisturbed: TrainClassifier, phantoms: Path, tmp_path: Path
) -> None:
    from cxr_tf.classification.train_classifier import train_classifier

    again = tiny_settings(phantoms, tmp_path)
    train_classifier(again)
    assert_same(final_state(undisturbed), final_state(again))


@pytest.mark.usefixtures("quick", "kept_state")
def test_resumed_run_is_identical_to_an_uninterrupted_one(
    undisturbed: TrainClassifier, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification import train_classifier
    from cxr_tf.training import epochs

    settings = tiny_settings(phantoms, tmp_path)
    whole = epochs.EpochEnd.on_train_batch_end
    killed = []

    def kill(self, batch, logs=None):
        whole(self, batch, logs)
        # In the first epoch, before a checkpoint exists, and in the second, after one.
        if self._state.epochs_done() == len(killed) and batch == 1:
            killed.append(batch)
            raise KeyboardInterrupt

    monkeypatch.setattr(epochs.EpochEnd, "on_train_batch_end", kill)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train_classifier.train_classifier(dataclasses.replace(settings, resume=bool(killed)))
    with pytest.raises(UserError, match="interrupted"):
        train_classifier.train_classifier(settings)
    run = train_classifier.train_classifier(dataclasses.replace(settings, resume=True))

    assert len(killed) == 3
    assert_same(final_state(undisturbed), final_state(settings))
    before = json.loads((Path(undisturbed.logs) / "classifier/run/metrics.json").read_text())
    after = run.metrics
    for volatile in ("train_seconds", "images_per_second"):
        del before["model"][volatile], after["model"][volatile]
    # As text, in which 1 and 1.0 differ.
    assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    for split in ("val", "test"):
        name = f"classifier/run/predictions-{split}.csv"
        kept = (Path(undisturbed.logs) / name).read_bytes()
        assert (Path(settings.logs) / name).read_bytes() == kept


@pytest.mark.usefixtures("quick", "kept_state")
def test_fine_tuning_resumes_identically(
    undisturbed: TrainClassifier, phantoms: Path, tmp_path: Path
) -> None:
    """From pretrained weights, with a fitted head and frozen BatchNorm."""
    from cxr_tf.classification import train_classifier

    source = Path(undisturbed.logs) / "classifier/run/model.keras"
    changed = {"weights": str(source), "epochs": 2}
    smooth, rough = (tiny_settings(phantoms, tmp_path / s, **changed) for s in ("a", "b"))
    train_classifier.train_classifier(smooth)
    for resume in (False, True):  # the second time no epoch is left
        with killed_after_an_epoch():
            train_classifier.train_classifier(dataclasses.replace(rough, resume=resume))
    train_classifier.train_classifier(dataclasses.replace(rough, resume=True))
    assert_same(final_state(smooth), final_state(rough))


def test_finished_run_is_not_changed(finished: TrainClassifier) -> None:
    from cxr_tf.classification import train_classifier

    def contents() -> dict[Path, tuple[int, int]]:
        roots = Path(finished.logs), Path(finished.saved_models)
        files = [p for root in roots for p in root.rglob("*") if p.is_file()]
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before = contents()
    with pytest.raises(UserError, match="finished"):
        train_classifier.train_classifier(finished)
    train_classifier.train_classifier(dataclasses.replace(finished, resume=True))
    assert contents() == before
    with pytest.raises(UserError, match="--seed 0, not 1"):
        train_classifier.train_classifier(dataclasses.replace(finished, resume=True, seed=1))


@pytest.mark.usefixtures("quick")
def test_nan_loss_stops_training_at_that_step(
    undisturbed: TrainClassifier, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf import runs
    from cxr_tf.classification import train_classifier
    from cxr_tf.data import batches as data_batches

    batches = data_batches.training_batches

    def poisoned(*args, **kwargs):
        import tensorflow as tf

        clean = batches(*args, **kwargs)
        steps = 48 // 16
        return clean.enumerate().map(
            lambda i, b: (b[0] * tf.where(i == steps + 1, math.nan, 1.0), b[1])
        )

    monkeypatch.setattr(data_batches, "training_batches", poisoned)
    settings = tiny_settings(phantoms, tmp_path)
    with pytest.raises(UserError, match=r"nan at step 2 of epoch 2.*learning-rate"):
        train_classifier.train_classifier(settings)
    folder = Path(settings.logs) / "classifier/run"
    assert not (folder / "metrics.json").exists()
    with np.load(folder / "checkpoint.npz") as kept:
        assert all(np.isfinite(kept[k]).all() for k in kept if k.startswith("v"))
    monkeypatch.undo()
    skip_figures_and_export(monkeypatch)
    keep_checkpoints(monkeypatch)
    run = train_classifier.train_classifier(dataclasses.replace(settings, resume=True))
    assert isinstance(run, runs.Run)
    assert_same(final_state(undisturbed), final_state(settings))


@pytest.mark.usefixtures("quick")
def test_nan_weights_after_the_last_step_stop_the_run(
    tiny_backbone: str, phantoms: Path, tmp_path: Path
) -> None:
    """The loss of the last step is computed before its update, and is still finite."""
    from cxr_tf.classification import train_classifier

    settings = tiny_settings(phantoms, tmp_path, learning_rate=1e30, batch_size=48)
    with pytest.raises(UserError, match=r"finite.*--learning-rate"):
        train_classifier.train_classifier(settings)


def test_unreadable_file_raises_before_anything_is_written(
    tiny_backbone: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification import train_classifier

    folder = tmp_path / "data"
    shutil.copytree(phantoms, folder)
    broken = next((folder / "train" / "NORMAL").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:-30])
    settings = tiny_settings(folder, tmp_path, epochs=1)
    with pytest.raises(UserError, match=rf"{broken.name}.*--skip-unreadable"):
        train_classifier.train_classifier(settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]

    skip_figures_and_export(monkeypatch)
    run = train_classifier.train_classifier(dataclasses.replace(settings, skip_unreadable=True))
    rows = sum(run.metrics[s]["images"] for s in ("val", "test"))
    assert 0 < rows < 71
    assert run.config["images"] == 71


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 32}, "at least 64"),
        ({"epochs": 0}, "--weights none needs --epochs"),
        ({"trainable_blocks": 0}, "--weights none needs"),
        ({"trainable_blocks": 3}, "from 0 to 2"),
        ({"operating_point": "best"}, "known: 0.5"),
        ({"operating_point": "youden", "task": "three_class"}, "two classes"),
        ({"name": "a/b"}, "folder"),
        ({"data": "/nowhere"}, "no such folder"),
        ({"weights": "nowhere.weights.h5"}, "no such weights file"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"augmentation": -1.0}, "--augmentation"),
        ({"bootstrap_samples": -1}, "--bootstrap-samples"),
        ({"patience": 0}, "--patience"),
    ],
)
def test_invalid_settings_raise_before_anything_is_written(
    tiny_backbone: str, phantoms: Path, tmp_path: Path, changed: dict, message: str
) -> None:
    from cxr_tf.classification import train_classifier

    with pytest.raises(UserError, match=message):
        train_classifier.train_classifier(tiny_settings(phantoms, tmp_path, **changed))
    assert list(tmp_path.iterdir()) == []


def test_run_directory_is_complete(finished: TrainClassifier) -> None:
    folder = Path(finished.logs) / "classifier" / finished.name
    metrics = json.loads((folder / "metrics.json").read_text())
    for split in ("val", "test"):
        table = metrics[split]
        assert {*SCORES, "recall/normal", "recall/pneumonia"} <= table.keys()
        assert table["recall"] == table["recall/pneumonia"]
        for metric in SCORES:
            # Without a bootstrap sample that defines it (no positive prediction) there is none.
            low, high = table["ci95"].get(metric, (0, 1))
            assert low <= high
        assert {"auroc", "accuracy", "brier", "loss"} <= table["ci95"].keys()
        with (folder / f"predictions-{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == table["images"]
        assert len({r["patient"] for r in rows}) == table["patients"]
        right = np.mean([r["label"] == r["predicted"] for r in rows])
        assert table["accuracy"] == pytest.approx(right)
        threshold = metrics["model"]["threshold"]
        for r in rows:
            assert (r["predicted"] == "pneumonia") == (float(r["pneumonia"]) >= threshold)
    names = {p.name for p in folder.iterdir()}
    promised = {"config.json", "metrics.json", "model.keras", "figures"}
    assert promised | {"predictions-val.csv", "predictions-test.csv"} <= names
    assert not {n for n in names if n.startswith(".") or n.endswith(".npz")}
    for figure in ("roc", "precision_recall", "confusion", "reliability", "most_wrong"):
        assert (folder / "figures" / f"{figure}-test.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures" / "training_curves.png").exists()


def test_tensorboard_has_every_summary(finished: TrainClassifier) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(Path(finished.logs) / "classifier" / finished.name), size_guidance={"tensors": 0}
    )
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"train/loss", "train/accuracy", "train/learning_rate", "val/auroc"} <= tags
    assert {"final/test_auroc", "confusion-test", "samples-test"} <= tags
    assert {"test/pneumonia/pr_curves", "_hparams_/session_start_info"} <= tags
    plugins = {t: events.SummaryMetadata(t).plugin_data.plugin_name for t in tags}
    assert plugins["train/loss"] == "scalars"
    assert plugins["confusion-test"] == "images"
    assert plugins["test/pneumonia/pr_curves"] == "pr_curves"
    assert plugins["_hparams_/session_start_info"] == "hparams"


def test_resolved_settings_are_recorded(finished: TrainClassifier) -> None:
    run = Path(finished.logs) / "classifier" / finished.name
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    left = {"precision": "auto", "trainable_blocks": None, "learning_rate": None}
    assert set(resolved) == {k for k, v in left.items() if getattr(finished, k) == v}
    assert resolved and None not in resolved.values() and "auto" not in resolved.values()


def test_threshold_calibration_and_epoch_are_chosen_on_validation(
    finished: TrainClassifier,
) -> None:
    """Recompute them, and check that test would give others."""
    import keras
    from sklearn.metrics import log_loss

    from cxr_tf import metrics as metrics_module
    from cxr_tf.classification.fitting import class_weights
    from cxr_tf.classification.train_classifier import load_data
    from cxr_tf.data import batches as data_batches
    from cxr_tf.data.batches import STRESS_SEED
    from cxr_tf.models.classifier import logits_of
    from cxr_tf.scoring.groups import with_groups
    from cxr_tf.training.inference import compiled, infer

    folder = Path(finished.logs) / "classifier" / finished.name
    recorded = json.loads((folder / "metrics.json").read_text())
    data = load_data(finished)
    to_logits = compiled(logits_of(keras.saving.load_model(folder / "model.keras", compile=False)))

    train = data.split("train")
    shortcuts = metrics_module.fit_shortcuts(train.images, train.labels, train.classes)

    def chosen(split: str) -> tuple[float, ...]:
        part = with_groups(data.split(split), shortcuts)
        group_weights = metrics_module.group_weights(part.labels, part.against)
        logits = [
            infer(to_logits, data_batches.evaluation_batches(part.images, batch_size=32, **stress))
            for stress in ({}, {"stress_seed": STRESS_SEED})
        ]
        weights = class_weights(data.split("train").labels)
        image_weights = group_weights * [weights[k] for k in part.labels]
        temperature, bias = metrics_module.fit_calibration(
            np.concatenate(logits),
            np.concatenate([part.labels, part.labels]),
            np.tile(image_weights, 2),
        )
        losses = [
            log_loss(part.labels, softmax(x, axis=1), sample_weight=image_weights) for x in logits
        ]
        scores = softmax(logits[0] / temperature + bias, axis=1)[:, 1]
        threshold = metrics_module.operating_point(part.labels, scores, "youden", group_weights)
        return temperature, bias[0], threshold, float(np.mean(losses))

    model = recorded["model"]
    bias = model["bias"][recorded["model"]["classes"][0]]
    actual = model["temperature"], bias, model["threshold"], model["selection_loss"]
    assert actual == pytest.approx(chosen("val"), rel=1e-4)
    for value, of_test in zip(actual, chosen("test"), strict=True):
        assert value != pytest.approx(of_test, rel=1e-3)


def test_training_on_two_devices(phantoms: Path, tmp_path: Path) -> None:
    """Train with MirroredStrategy up to the SavedModel, in a separate process."""
    script = Path(__file__).parents[1] / "support" / "mirrored_training.py"
    done = subprocess.run(
        [sys.executable, str(script), str(phantoms), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    replicas, word, *losses = done.stdout.split()[-5:]
    assert (replicas, word) == ("2", "replicas")
    scratch, head, tuned = map(float, losses)
    assert 0 < scratch < 5 and 0 < head < 5 and 0 < tuned < 5
    assert tuned != head
    assert (tmp_path / "saved_models/tiny-binary/1/saved_model.pb").exists()
