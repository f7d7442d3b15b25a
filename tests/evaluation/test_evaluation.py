"""What a finished model is scored on: never its own training images by mistake, and no copies."""

import dataclasses
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.config import Evaluate, TrainClassifier
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import loading as data_loading
from cxr_tf.serving.loading import ServedModel

CLASSES = ("normal", "pneumonia")


@pytest.fixture
def unsplit(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms without split folders."""
    for path in phantoms.glob("t*/*/*.png"):
        (tmp_path / "unsplit" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "unsplit" / path.parent.name)
    return tmp_path / "unsplit"


def exported(folder: Path, **card: object) -> ServedModel:
    """A version of a model that has nothing but its card."""
    from cxr_tf.serving import loading, versions

    def write(beside: str) -> None:
        tf.saved_model.save(tf.Module(), beside)

    version = versions.write_version(folder, write, card={"image_size": 64, **card})
    return loading.load_served(str(version))


def test_the_folder_of_the_training_is_split_as_it_was_then(
    unsplit: Path, tmp_path: Path, caplog
) -> None:
    from cxr_tf.scoring.selection import open_subset

    caplog.set_level("INFO")
    trained_on = data_loading.open_catalog(str(unsplit), seed=3)
    served = exported(
        tmp_path / "models" / "one",
        seed=3,
        data_fingerprint=trained_on.fingerprint(),
        training_digests=trained_on.training_digests(),
    )
    assert "training_digests" not in served.card
    settings = Evaluate(model="", data=str(unsplit))
    part = open_subset(settings, served, "binary", CLASSES)
    assert "too good" not in caplog.text
    expected = trained_on.take(trained_on.rows("test")).paths
    assert sorted(part.catalog.paths) == sorted(expected)
    assert 0 < len(part.labels) < len(trained_on)
    every = open_subset(dataclasses.replace(settings, split="all"), served, "binary", CLASSES)
    assert len(every.labels) == len(trained_on)
    # Another folder is scored whole, and if it has images of the training it is said.
    gone = next(unsplit.glob("*/*.png"))
    learnt = [r.path for r in trained_on.radiographs if r.split in ("train", "val")]
    gone.unlink()
    caplog.clear()
    other = open_subset(settings, served, "binary", CLASSES)
    assert len(other.labels) == len(trained_on) - 1
    seen = len(set(learnt) - {str(gone)})
    assert f"trained on or chosen by {seen} of these" in caplog.text


def test_training_images_are_not_taken_for_test_images(
    unsplit: Path, phantoms: Path, tmp_path: Path
) -> None:
    """Nor for validation, where training had left files out, or had drawn splits again."""
    from cxr_tf.data.dataset import decode_catalog
    from cxr_tf.scoring.selection import open_subset

    def scored(data: Path, split: str) -> set[str]:
        settings = Evaluate(model="", data=str(data), split=split, skip_unreadable=True)
        return set(open_subset(settings, served, "binary", CLASSES).catalog.paths)

    def trained_on(data: Path) -> data_catalog.Catalog:
        catalog, _ = decode_catalog(data_loading.open_catalog(str(data), seed=3), 64, skip=True)
        served.card.update(seed=3, data_fingerprint=catalog.fingerprint())
        return catalog

    served = exported(tmp_path / "models" / "one")
    broken = next(unsplit.glob("*/*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    small_val, no_test = tmp_path / "small-val", tmp_path / "no-test"
    shutil.copytree(phantoms, small_val)
    shutil.copytree(phantoms, no_test)
    shutil.rmtree(no_test / "test")
    for data in (unsplit, small_val, no_test):
        catalog = trained_on(data)
        for split in ("val", "test"):
            own = set(catalog.take(catalog.rows(split)).paths)
            assert scored(data, split) == own and own, (data, split)


def test_splits_are_not_copied(unsplit: Path) -> None:
    from cxr_tf.data.dataset import ImageDataset, decode_catalog

    catalog = data_loading.open_catalog(str(unsplit), seed=3)
    splits = [r.split for r in catalog.radiographs]
    assert splits != sorted(splits, key=data_catalog.SPLITS.index)  # else it would prove nothing
    ordered, images = decode_catalog(catalog, 64, skip=False)
    data = ImageDataset(ordered, images, ordered.labels("binary"), CLASSES)
    for split in data_catalog.SPLITS:
        part = data.split(split)
        assert np.shares_memory(part.images, images)
        assert part.catalog.paths == catalog.take(catalog.rows(split)).paths
        np.testing.assert_array_equal(decode_catalog(part.catalog, 64, skip=False)[1], part.images)
        np.testing.assert_array_equal(part.catalog.labels("binary"), part.labels)


def test_runs_that_list_their_images_in_another_order_are_not_compared() -> None:
    from cxr_tf.errors import UserError
    from cxr_tf.scoring.predictions import Predictions, check_same_rows

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1), 20)
    labels, patients = np.arange(20) % 2, [f"p{k}" for k in range(20)]
    one = Predictions(patients, patients, labels, probabilities, probabilities.argmax(1))
    check_same_rows({"one": one, "two": one})
    order = rng.permutation(20)
    names = [patients[k] for k in order]
    two = Predictions(names, names, labels[order], probabilities[order], one.predicted[order])
    with pytest.raises(UserError, match="another order"):
        check_same_rows({"one": one, "two": two})
    # Nor where two images of a patient have changed places, which have one label.
    paths = patients[:2][::-1] + patients[2:]
    same = dataclasses.replace(one, patients=["p"] * 20, labels=np.zeros(20, int))
    with pytest.raises(UserError, match="another order"):
        check_same_rows({"one": same, "two": dataclasses.replace(same, paths=paths)})


def test_each_shift_is_scored_on_images_shifted_by_it(unsplit: Path) -> None:
    from PIL import Image

    from cxr_tf.data.acquisition_shifts import SHIFTS
    from cxr_tf.data.dataset import decode_catalog
    from cxr_tf.scoring.shifts import under_shifts

    _, images = decode_catalog(data_loading.open_catalog(str(unsplit), seed=3), 64, skip=False)
    asked: list[int] = []

    def by_brightness(contents: list[bytes]) -> dict[str, np.ndarray]:
        asked.append(len(contents))
        seen = [np.asarray(Image.open(io.BytesIO(png)), float) for png in contents]
        assert all(pixels.shape == (64, 64) for pixels in seen)
        return {"score": np.array([pixels.mean() for pixels in seen])}

    def scored(answers: dict[str, np.ndarray]) -> dict[str, float]:
        told = dict.fromkeys(("auroc", "accuracy", "recall", "specificity"), 0.5)
        return told | {f"image {k}": score for k, score in enumerate(answers["score"])}

    served = SimpleNamespace(ask={"serving_default": by_brightness}.get)
    found = under_shifts(served, images, scored, batch_size=7)
    assert set(asked) <= {7, len(images) % 7}
    for name, shift in SHIFTS.items():
        means = shift(images).mean(axis=(1, 2, 3))
        assert [found[name][f"image {k}"] for k in range(len(images))] == pytest.approx(list(means))


def test_a_comparison_finds_mistakes_before_it_trains(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification import compare_backbones, train_classifier
    from cxr_tf.config import CompareBackbones
    from cxr_tf.errors import UserError

    def never(*_: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr(train_classifier, "load_data", never)
    plain = CompareBackbones(
        data=str(phantoms),
        name="c",
        resnet50_weights="none",
        vgg16_weights="none",
        logs=str(tmp_path / "logs"),
        saved_models=str(tmp_path / "models"),
    )
    finished = tmp_path / "logs" / "classifier" / "c-alexnet"
    for changed, said in (
        ({"vgg16_weights": str(tmp_path / "none.h5")}, "no such weights file"),
        ({"epochs": 0}, "--weights none needs"),
        ({"trainable_blocks": 6}, "--trainable-blocks for resnet50 must be from 0 to 5, not 6"),
    ):
        with pytest.raises(UserError, match=said):
            compare_backbones.compare_backbones(dataclasses.replace(plain, **changed))
    finished.mkdir(parents=True)
    for name in ("config.json", "metrics.json"):
        (finished / name).write_text("{}")
    with pytest.raises(UserError, match="c-alexnet exists and is finished"):
        compare_backbones.compare_backbones(plain)
    with pytest.raises(AssertionError, match="begun"):
        compare_backbones.compare_backbones(dataclasses.replace(plain, name="d"))


def test_an_evaluation_that_exists_is_refused_before_an_image_is_read(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.errors import UserError
    from cxr_tf.evaluation import evaluate as evaluation_evaluate
    from cxr_tf.scoring import selection

    served = exported(tmp_path / "models" / "one", kind="classifier", task="binary")
    settings = Evaluate(model=str(served.folder), data=str(phantoms), logs=str(tmp_path / "logs"))
    names = {
        evaluation_evaluate.evaluation_name(dataclasses.replace(settings, **changed), served)
        for changed in ({}, {"split": "val"}, {"shifts": True})
    }
    place = phantoms.name
    assert names == {f"one-{place}", f"one-{place}-val", f"one-{place}-shifts"}
    folder = tmp_path / "logs" / "evaluate" / f"one-{place}"
    folder.mkdir(parents=True)
    for name in ("config.json", "metrics.json"):
        (folder / name).write_text("{}")
    monkeypatch.setattr(selection, "open_subset", lambda *_: pytest.fail("it reads"))
    with pytest.raises(UserError, match="exists and is finished"):
        evaluation_evaluate.evaluate(settings)


def test_a_folder_of_which_nothing_can_be_read_is_told(unsplit: Path, tmp_path: Path) -> None:
    from cxr_tf.errors import UserError
    from cxr_tf.scoring.selection import open_subset

    served = exported(tmp_path / "models" / "one")
    for path in unsplit.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    settings = Evaluate(model="", data=str(unsplit), skip_unreadable=True)
    with pytest.raises(UserError, match="none of the images can be read"):
        open_subset(settings, served, "binary", CLASSES)


def test_the_seed_of_an_evaluation_draws_its_resamples(finished: TrainClassifier) -> None:
    from cxr_tf.evaluation.evaluate import evaluate
    from cxr_tf.runs import Run

    run = Run(Path(finished.logs) / "classifier" / finished.name)

    def intervals(seed: int) -> dict[str, list[float]]:
        settings = Evaluate(
            model=f"{finished.saved_models}/{finished.name}",
            data=finished.data,
            bootstrap_samples=finished.bootstrap_samples,
            seed=seed,
            name=f"seed-{seed}",
            logs=finished.logs,
        )
        return evaluate(settings).metrics["test"]["ci95"]

    # Of decisions, which the last digit of a probability does not change.
    measured = run.metrics["test"]["ci95"]["accuracy"]
    assert intervals(0)["accuracy"] == measured != intervals(1)["accuracy"]


def test_scores_without_an_interval_are_drawn() -> None:
    from cxr_tf import figures

    tables = [{"auroc": 0.9, "ci95": {}}, {"auroc": 0.8, "ci95": {"auroc": [0.7, 0.9]}}]
    drawn = figures.comparison(["one", "two"], tables, ["auroc"], "one")
    ends = [list(line.get_xdata()) for line in drawn.axes[0].lines[::2]]
    assert ends == [[0.9, 0.9], [0.7, 0.9]]
