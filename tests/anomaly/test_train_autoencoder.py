"""Tests of training an autoencoder: data, settings, choices on validation, run and export."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_autoencoder import settings_for

from cxr_tf.config import TrainAutoencoder
from cxr_tf.errors import UserError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip figures, alternative scores and export, which are tested on the finished run."""
    from cxr_tf import runs
    from cxr_tf.anomaly import drawing, scoring
    from cxr_tf.serving import export

    table = {"auroc": 0.5, "ci95": {}}
    monkeypatch.setattr(scoring, "score_alternative", lambda *_: {"val": table, "test": table})

    monkeypatch.setattr(drawing, "draw_split", lambda *a, **k: None)
    monkeypatch.setattr(runs.Run, "write_figure", lambda *a, **k: None)
    monkeypatch.setattr(export, "export_autoencoder", lambda *a, **k: Path("nowhere/1"))


def weights(settings: TrainAutoencoder) -> list[np.ndarray]:
    import keras

    folder = Path(settings.logs) / "autoencoder" / settings.name
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_export_lists_its_training_files(finished: TrainAutoencoder) -> None:
    from cxr_tf.data.loading import open_catalog
    from cxr_tf.serving import loading

    served = loading.load_served(f"{finished.saved_models}/{finished.name}")
    rows = open_catalog(finished.data, seed=finished.seed).radiographs
    kinds = {
        (r.split, r.finding == "normal") for r in rows if r.digest in served.training_digests()
    }
    assert kinds == {("train", True), ("val", True), ("val", False)}
    assert len(served.training_digests()) == sum(
        r.split == "val" or (r.split == "train" and r.finding == "normal") for r in rows
    )


def table(settings: TrainAutoencoder, split: str = "test") -> list[dict[str, str]]:
    file = Path(settings.logs) / "autoencoder" / settings.name / f"predictions-{split}.csv"
    with file.open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.usefixtures("quick")
def test_weights_do_not_depend_on_abnormal_images(
    chests: Path, finished: TrainAutoencoder, tmp_path: Path
) -> None:
    """Replacing every sick image by noise changes the scores, but not a bit of the weights."""
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    spoilt = tmp_path / "spoilt"
    shutil.copytree(chests, spoilt)
    rng = np.random.default_rng(0)
    for path in [*spoilt.glob("t*/[BV]*/*.png"), *spoilt.glob("val/[BV]*/*.png")]:
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(path)
    settings = settings_for(spoilt, tmp_path)
    train_autoencoder(settings)
    assert_same(weights(finished), weights(settings))
    scores = [
        [r["score"] for r in table(s) if r["label"] == "pneumonia"] for s in (finished, settings)
    ]
    assert scores[0] != scores[1]


@pytest.mark.usefixtures("quick")
def test_resumed_run_is_identical_to_an_uninterrupted_one(
    chests: Path, finished: TrainAutoencoder, tmp_path: Path
) -> None:
    from killed_training import killed_after_an_epoch

    from cxr_tf.anomaly import train_autoencoder

    settings = settings_for(chests, tmp_path)
    with killed_after_an_epoch():
        train_autoencoder.train_autoencoder(settings)
    with pytest.raises(UserError, match="was interrupted"):
        train_autoencoder.train_autoencoder(settings)
    train_autoencoder.train_autoencoder(dataclasses.replace(settings, resume=True))
    assert_same(weights(finished), weights(settings))
    assert [r["score"] for r in table(settings)] == [r["score"] for r in table(finished)]


def test_export_predicts_the_measured_scores(finished: TrainAutoencoder) -> None:
    import tensorflow as tf

    rows = table(finished)
    loaded = tf.saved_model.load(str(Path(finished.saved_models) / "run" / "1"))
    encoded = tf.constant([Path(r["path"]).read_bytes() for r in rows])
    served = loaded.signatures["serving_default"](image_bytes=encoded)
    np.testing.assert_allclose(served["score"], [float(r["score"]) for r in rows], atol=1e-4)
    np.testing.assert_array_equal(
        served["is_anomaly"], [r["predicted"] == "pneumonia" for r in rows]
    )
    np.testing.assert_allclose(
        served["percentile"], [float(r["percentile"]) for r in rows], atol=0.06
    )
    folder = Path(finished.logs) / "autoencoder" / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    np.testing.assert_allclose(served["threshold"], metrics["model"]["threshold"], rtol=1e-6)
    assert "exposure, scanner" in metrics["model"]["threshold_rule"]
    called = served["is_anomaly"].numpy()
    sick = np.array([r["label"] == "pneumonia" for r in rows])
    assert metrics["test"]["recall"] == pytest.approx(called[sick].mean())
    assert metrics["test"]["specificity"] == pytest.approx(1 - called[~sick].mean())

    explained = loaded.signatures["explain"](image_bytes=encoded)
    np.testing.assert_allclose(explained["score"], served["score"], atol=1e-5)
    assert (
        explained["anomaly_map"].shape == explained["reconstruction"].shape == (len(rows), 128, 128)
    )
    assert float(tf.reduce_min(explained["reconstruction"])) >= 0
    assert float(tf.reduce_max(explained["reconstruction"])) <= 255


def test_threshold_is_chosen_on_validation(finished: TrainAutoencoder) -> None:
    import keras

    from cxr_tf.anomaly import perturbed_copies, train_autoencoder
    from cxr_tf.anomaly import threshold as anomaly_threshold

    folder = Path(finished.logs) / "autoencoder" / finished.name
    threshold = json.loads((folder / "metrics.json").read_text())["model"]["threshold"]
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    data = train_autoencoder.load_data(finished)

    def chosen(split: str) -> float:
        part = data.split(split)
        scores = anomaly_threshold.score_perturbed_copies(
            {"score": perturbed_copies.predict_fn(model, ["score"])}, part, finished
        )
        return anomaly_threshold.choose_threshold(part.labels == 1, scores["score"], finished)[0]

    assert threshold == pytest.approx(chosen("val"), rel=1e-4)
    assert threshold != pytest.approx(chosen("test"), rel=1e-3)


def test_white_lung_raises_score_and_anomaly_map(finished: TrainAutoencoder) -> None:
    """For a saved and reloaded model."""
    import keras

    from cxr_tf.anomaly import perturbed_copies
    from cxr_tf.data.sources.phantoms import phantom

    drawn = [phantom("normal", seed=8, patient=i, size=128) for i in range(12)]
    healthy = np.stack([p.image for p in drawn])[..., None]
    left = np.stack([p.lungs for p in drawn]) & (np.arange(128) < 64)
    white = np.where(left[..., None], np.uint8(200), healthy)
    folder = Path(finished.logs) / "autoencoder" / finished.name
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    before, after = (
        perturbed_copies.predict_fn(model, ("score", "anomaly_map"))(x) for x in (healthy, white)
    )
    assert np.mean(after["score"] > before["score"]) >= 0.75
    assert after["anomaly_map"][left].mean() > 2 * after["anomaly_map"][~left].mean()


def test_run_directory_is_complete(finished: TrainAutoencoder) -> None:
    from cxr_tf.data.loading import open_catalog

    folder = Path(finished.logs) / "autoencoder" / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    wanted = ("auroc", "auprc", "recall", "specificity", "f1", "accuracy")
    for split in ("val", "test"):
        assert set(wanted) <= set(metrics[split]) and set(wanted) <= set(metrics[split]["ci95"])
        assert {"auroc/bacterial", "recall/viral"} <= set(metrics[split])
    localised = ("pixel_auroc", "aupro", "pointing", "pointing_chance")
    assert set(localised) <= set(metrics["test"])
    figures = {p.stem for p in (folder / "figures").glob("*.png")}
    assert {"roc-test", "scores-test", "typical-test", "training_curves"} <= figures
    assert {"precision_recall-test", "confusion-test"} <= figures
    card = json.loads(
        (Path(metrics["model"]["saved_model"]) / "assets.extra/model_card.json").read_text()
    )
    catalog = open_catalog(finished.data, seed=finished.seed)
    healthy = [r for r in catalog.radiographs if r.split == "train" and r.finding == "normal"]
    assert card["data"] == Path(finished.data).name
    # Only the training images that were used.
    assert card["images"] == {
        "train": len(healthy), **{s: len(catalog.rows(s)) for s in ("val", "test")}
    }  # fmt: skip
    assert not list(folder.glob("*.npz"))  # the checkpoint is gone


@pytest.mark.usefixtures("quick")
def test_plain_autoencoder_trains_without_abnormal_images(chests: Path, tmp_path: Path) -> None:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    healthy = tmp_path / "healthy"
    for split in ("train", "val", "test"):
        shutil.copytree(chests / split / "NORMAL", healthy / split / "NORMAL")
    with pytest.raises(UserError, match="needs abnormal images"):  # before it trains
        train_autoencoder(settings_for(healthy, tmp_path, operating_point="min-sensitivity:0.9"))
    assert not (tmp_path / "logs").exists()
    settings = settings_for(healthy, tmp_path, model="plain", score="ssim", epochs=1)
    measured = train_autoencoder(settings).metrics
    assert measured["model"]["score"] == "ssim"
    assert all(0 <= float(r["score"]) <= 1 for r in table(settings))
    assert "no abnormal image" in measured["model"]["threshold_rule"]
    assert measured["test"]["auroc"] is None and measured["test"]["specificity"] is not None


@pytest.mark.usefixtures("quick")
def test_default_epochs_are_recorded(
    chests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.anomaly import resolved, train_autoencoder

    monkeypatch.setattr(resolved, "MOST_EPOCHS", 2)
    monkeypatch.setattr(resolved, "EPOCHS", 1)
    settings = settings_for(chests, tmp_path, epochs=None, operating_point="min-specificity:0.8")
    run = train_autoencoder.train_autoencoder(settings)
    assert run.config["settings"]["epochs"] == len(run.metrics["history"]) == 2
    assert run.metrics["model"]["threshold_rule"].startswith("min-specificity")
    again = train_autoencoder.train_autoencoder(dataclasses.replace(settings, resume=True))
    assert again.directory == run.directory


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "ssim"}, "is not available for --model denoising"),
        ({"image_size": 208}, "multiple of 32, at least 128"),
        ({"image_size": 96}, "multiple of 32, at least 128"),
        ({"model": "plain", "score": "", "image_size": 72}, "multiple of 16, at least 64"),
        ({"operating_point": "0.5"}, "is for probabilities"),
        ({"operating_point": "min-specificity:1.5"}, "give a share"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"name": "a/b"}, "--name"),
    ],
)
def test_invalid_settings_raise_before_anything_is_written(
    chests: Path, tmp_path: Path, changed: dict, message: str
) -> None:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    with pytest.raises(UserError, match=message):
        train_autoencoder(settings_for(chests, tmp_path, **changed))
    assert not list(tmp_path.iterdir())


def test_too_few_healthy_images_raise(chests: Path, tmp_path: Path) -> None:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    few = tmp_path / "few"
    shutil.copytree(chests, few)
    for path in sorted(few.glob("train/NORMAL/*.png"))[18:]:
        path.unlink()
    # The validation split is redrawn by patient, so the number of images varies a little.
    with pytest.raises(UserError, match=r": 1\d healthy images in the train split.*at least 20"):
        train_autoencoder(settings_for(few, tmp_path / "out"))
    for path in few.glob("t*/NORMAL/*.png"):
        path.unlink()
    for path in few.glob("val/NORMAL/*.png"):
        path.unlink()
    with pytest.raises(UserError, match=": 0 healthy images"):
        train_autoencoder(settings_for(few, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
