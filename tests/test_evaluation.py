"""What a finished model is scored on: never its own training images by mistake, and no copies."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cxr_tf.data import catalog as catalogs
from cxr_tf.settings import Evaluate

CLASSES = ("normal", "pneumonia")


@pytest.fixture
def unsplit(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms without split folders."""
    for path in phantoms.glob("t*/*/*.png"):
        (tmp_path / "unsplit" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "unsplit" / path.parent.name)
    return tmp_path / "unsplit"


def test_the_folder_of_the_training_is_split_as_it_was_then(unsplit: Path) -> None:
    from cxr_tf.evaluation import open_part

    trained_on = catalogs.open_catalog(str(unsplit), seed=3)
    card = {"image_size": 64, "seed": 3, "data_fingerprint": trained_on.fingerprint()}
    served = SimpleNamespace(card=card)
    settings = Evaluate(model="", data=str(unsplit))
    part = open_part(settings, served, "binary", CLASSES)
    expected = trained_on.take(trained_on.rows("test")).paths
    assert sorted(part.catalog.paths) == sorted(expected)
    assert 0 < len(part.labels) < len(trained_on)
    every = open_part(dataclasses.replace(settings, split="all"), served, "binary", CLASSES)
    assert len(every.labels) == len(trained_on)
    # Another folder is scored whole.
    next(unsplit.glob("*/*.png")).unlink()
    other = open_part(settings, served, "binary", CLASSES)
    assert len(other.labels) == len(trained_on) - 1


def test_splits_are_not_copied(unsplit: Path) -> None:
    from cxr_tf.evaluation import Data, decode

    catalog = catalogs.open_catalog(str(unsplit), seed=3)
    splits = [r.split for r in catalog.radiographs]
    assert splits != sorted(splits, key=catalogs.SPLITS.index)  # else it would prove nothing
    ordered, images = decode(catalog, 64, skip=False)
    data = Data(ordered, images, ordered.labels("binary"), CLASSES)
    for split in catalogs.SPLITS:
        part = data.split(split)
        assert np.shares_memory(part.images, images)
        assert part.catalog.paths == catalog.take(catalog.rows(split)).paths
        np.testing.assert_array_equal(decode(part.catalog, 64, skip=False)[1], part.images)
        np.testing.assert_array_equal(part.catalog.labels("binary"), part.labels)


def test_runs_that_list_their_images_in_another_order_are_not_compared() -> None:
    from cxr_tf.comparison import Predictions, check_same_rows
    from cxr_tf.errors import UserError

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


def test_each_shift_is_scored_on_images_shifted_by_it(unsplit: Path) -> None:
    import tensorflow as tf

    from cxr_tf.data.shifts import SHIFTS
    from cxr_tf.evaluation import Data, decode, under_shifts

    catalog, images = decode(catalogs.open_catalog(str(unsplit), seed=3), 64, skip=False)
    part = Data(catalog, images, catalog.labels("binary"), CLASSES)
    middle = np.median(images.mean(axis=(1, 2, 3)))

    def by_brightness(images: tf.Tensor) -> dict[str, tf.Tensor]:
        p = tf.sigmoid((tf.reduce_mean(images, axis=[1, 2, 3]) - middle) / 8)
        return {"probabilities": tf.stack([1 - p, p], axis=1)}

    served = SimpleNamespace(signature={"tensor": by_brightness}.get, card={"threshold": 0.3})
    found = under_shifts(served, part, batch_size=7)
    limit = middle + 8 * np.log(0.3 / 0.7)
    for name, shift in SHIFTS.items():
        called = shift(images).astype(np.float64).mean(axis=(1, 2, 3)) >= limit
        assert found[name]["recall"] == pytest.approx(called[part.labels == 1].mean()), name
        assert found[name]["specificity"] == pytest.approx(1 - called[part.labels == 0].mean())
    assert found["brighter"]["recall"] > found["darker"]["recall"]
