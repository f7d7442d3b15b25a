"""Tests of the selection of images that a model is scored on."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from card_only_model import export_card

from cxr_tf.config import Evaluate
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import loading as data_loading
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.errors import UserError
from cxr_tf.scoring.selection import open_subset

CLASSES = ("normal", "pneumonia")


def test_training_folder_keeps_the_splits_used_in_training(
    unsplit: Path, tmp_path: Path, caplog
) -> None:
    caplog.set_level("INFO")
    trained_on = data_loading.open_catalog(str(unsplit), seed=3)
    served = export_card(
        tmp_path / "models" / "one",
        seed=3,
        data_fingerprint=trained_on.fingerprint(),
        training_digests=trained_on.training_digests(),
    )
    assert "training_digests" not in served.card
    settings = Evaluate(model="", data=str(unsplit))
    part = open_subset(settings, served, "binary", CLASSES)
    assert "too optimistic" not in caplog.text
    expected = trained_on.take(trained_on.rows("test")).paths
    assert sorted(part.catalog.paths) == sorted(expected)
    assert 0 < len(part.labels) < len(trained_on)
    every = open_subset(dataclasses.replace(settings, split="all"), served, "binary", CLASSES)
    assert len(every.labels) == len(trained_on)
    # Another folder is scored as a whole, with a note if it has images of the training.
    removed = next(unsplit.glob("*/*.png"))
    trained = [r.path for r in trained_on.radiographs if r.split in ("train", "val")]
    removed.unlink()
    caplog.clear()
    other = open_subset(settings, served, "binary", CLASSES)
    assert len(other.labels) == len(trained_on) - 1
    seen = len(set(trained) - {str(removed)})
    assert f"{seen} of these images were used in training or validation" in caplog.text


def test_training_images_are_never_scored_as_test_images(
    unsplit: Path, phantoms: Path, tmp_path: Path
) -> None:
    """This also holds if training left out files or drew splits again."""

    def scored(data: Path, split: str) -> set[str]:
        settings = Evaluate(model="", data=str(data), split=split, skip_unreadable=True)
        return set(open_subset(settings, served, "binary", CLASSES).catalog.paths)

    def trained_on(data: Path) -> data_catalog.Catalog:
        catalog, _ = decode_catalog(data_loading.open_catalog(str(data), seed=3), 64, skip=True)
        served.card.update(seed=3, data_fingerprint=catalog.fingerprint())
        return catalog

    served = export_card(tmp_path / "models" / "one")
    broken = next(unsplit.glob("*/*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    small_val, no_test = tmp_path / "small-val", tmp_path / "no-test"
    shutil.copytree(phantoms, small_val)
    shutil.copytree(phantoms, no_test)
    shutil.rmtree(no_test / "test")
    for data in (unsplit, small_val, no_test):
        catalog = trained_on(data)
        for split in ("val", "test"):
            expected = set(catalog.take(catalog.rows(split)).paths)
            assert scored(data, split) == expected and expected, (data, split)


def test_splits_share_memory_with_the_dataset(unsplit: Path) -> None:
    catalog = data_loading.open_catalog(str(unsplit), seed=3)
    splits = [r.split for r in catalog.radiographs]
    assert splits != sorted(
        splits, key=data_catalog.SPLITS.index
    )  # otherwise the test proves nothing
    ordered, images = decode_catalog(catalog, 64, skip=False)
    data = ImageDataset(ordered, images, ordered.labels("binary"), CLASSES)
    for split in data_catalog.SPLITS:
        part = data.split(split)
        assert np.shares_memory(part.images, images)
        assert part.catalog.paths == catalog.take(catalog.rows(split)).paths
        np.testing.assert_array_equal(decode_catalog(part.catalog, 64, skip=False)[1], part.images)
        np.testing.assert_array_equal(part.catalog.labels("binary"), part.labels)


def test_folder_without_a_readable_image_is_an_error(unsplit: Path, tmp_path: Path) -> None:
    served = export_card(tmp_path / "models" / "one")
    for path in unsplit.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    settings = Evaluate(model="", data=str(unsplit), skip_unreadable=True)
    with pytest.raises(UserError, match="none of the images can be read"):
        open_subset(settings, served, "binary", CLASSES)
