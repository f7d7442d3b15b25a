"""The split by acquisition: the test images contradict what the training images suggest."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.acquisition_split import AcquisitionSplit, least_typical, main
from cxr_tf.data import loading
from cxr_tf.data.sources.phantoms import write_phantoms
from cxr_tf.errors import UserError


def test_patients_with_the_least_typical_images_of_each_class_are_held_out() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    patients = ["a", "b", "c", "d", "e", "e", "f", "g"]
    typical = np.array([0.0, -3.0, 0.0, 0.0, -9.0, 0.0, -4.0, 0.0])  # mean of e: -4.5
    assert least_typical(labels, patients, typical, 0.25) == {"b", "e"}


def test_list_leaves_out_the_test_split_and_divides_patients(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "xrays", count=120, size=64, seed=4)
    source = loading.open_catalog(str(tmp_path / "xrays"), task="binary")
    main(AcquisitionSplit(data=str(tmp_path / "xrays"), out=tmp_path / "list.csv"))
    made = loading.open_catalog(str(tmp_path / "list.csv"), task="binary")
    digests = {r.digest for r in source.radiographs if r.split != "test"}
    assert {r.digest for r in made.radiographs} == digests
    test = {r.patient for r in made.radiographs if r.split == "test"}
    assert not test & {r.patient for r in made.radiographs if r.split != "test"}
    held_out = np.array([r.split == "test" for r in made.radiographs])
    for label in (0, 1):
        assert 0.25 <= held_out[made.labels("binary") == label].mean() <= 0.4
    with pytest.raises(UserError, match="already exists"):
        main(AcquisitionSplit(data=str(tmp_path / "xrays"), out=tmp_path / "list.csv"))


def test_too_few_patients_are_an_error_before_anything_is_written(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "xrays", count=12, size=64, seed=4)
    with pytest.raises(UserError, match="patients of class"):
        main(AcquisitionSplit(data=str(tmp_path / "xrays"), out=tmp_path / "list.csv"))
    assert not (tmp_path / "list.csv").exists()
