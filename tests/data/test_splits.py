"""Splits by patient: drawn, completed, or kept."""

from pathlib import Path

import pytest
from catalogs import Write, count_rows

from cxr_tf.data import catalog as data_catalog
from cxr_tf.data.checks import check, describe
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.splits import leakage


def test_split_by_patient_is_stratified_and_repeatable(tmp_path: Path, write: Write) -> None:
    for patient in range(60):
        finding = ("bacteria", "virus")[patient % 2]
        for image in range(1 + patient % 3):
            write(f"PNEUMONIA/person{patient}_{finding}_{image}.jpeg")
        write(f"NORMAL/IM-{patient:04d}-0001.jpeg")
    # Radiographs under two patients' names: both patients belong together.
    for pair in range(12):
        write(f"NORMAL/IM-1{pair:03d}-0001.jpeg", like=5 + pair)
        write(f"NORMAL/IM-2{pair:03d}-0001.jpeg", like=5 + pair)
    first, again, other = (open_catalog(str(tmp_path), seed=s) for s in (3, 3, 4))
    assert first == again
    assert [r.split for r in first.radiographs] != [r.split for r in other.radiographs]
    assert not leakage(first)
    counts = count_rows(first)
    for finding in ("normal", "bacterial", "viral"):
        total = sum(counts[s, finding] for s in data_catalog.SPLITS)
        assert counts["train", finding] == pytest.approx(0.70 * total, abs=3)
        assert counts["test", finding] == pytest.approx(0.15 * total, abs=3)
    assert "split by patient 70/15/15 with seed 3" in describe(first)
    assert "have no known patient" not in describe(first)
    write("NORMAL/ward 7.png")
    assert "1 image has no known patient" in describe(open_catalog(str(tmp_path)))


@pytest.mark.parametrize("patients", [3, 4, 7])
def test_small_sets_have_every_finding_in_every_split(
    tmp_path: Path, write: Write, patients: int
) -> None:
    for number in range(patients):
        write(f"NORMAL/{number}.png")
        write(f"PNEUMONIA/{number}.png")
    for seed in range(5):
        check(open_catalog(str(tmp_path), seed=seed), task="binary")


def test_a_validation_split_of_16_is_redrawn_and_the_test_split_kept(
    tmp_path: Path, write: Write
) -> None:
    for split, count in (("train", 300), ("val", 8), ("test", 40)):
        for number in range(count):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    given = open_catalog(str(tmp_path), resplit=False)
    resolved = open_catalog(str(tmp_path))
    assert count_rows(given)["val", "normal"] == 8
    assert "val has only 16 images: train and val pooled" in describe(resolved)
    before, after = ({r.path: r.split for r in c.radiographs} for c in (given, resolved))
    assert {p for p, s in before.items() if s == "test"} == {
        p for p, s in after.items() if s == "test"
    }
    assert 50 < count_rows(resolved)["val", "normal"] < 58  # 15 of 85 parts of 308
    check(resolved, task="binary")


def test_a_validation_split_without_a_class_is_redrawn(tmp_path: Path, write: Write) -> None:
    for number in range(110):
        write(f"train/NORMAL/t{number}.png")
        write(f"train/PNEUMONIA/t{number}.png")
        write(f"val/NORMAL/v{number}.png")
    write("test/NORMAL/1.png")
    write("test/PNEUMONIA/1.png")
    catalog = open_catalog(str(tmp_path))
    assert "val has no pneumonia image" in describe(catalog)
    check(catalog, task="binary")


def test_a_sufficient_validation_split_is_kept(tmp_path: Path, write: Write) -> None:
    for split, count in (("train", 60), ("val", 50), ("test", 10)):
        for number in range(count):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/PNEUMONIA/{split}{number}.png")
    assert open_catalog(str(tmp_path)) == open_catalog(str(tmp_path), resplit=False)


def test_a_binary_task_needs_no_viral_images_in_val(tmp_path: Path, write: Write) -> None:
    for split, count in (("train", 60), ("val", 50), ("test", 10)):
        for number in range(count):
            write(f"{split}/NORMAL/{split}{number}.png")
            write(f"{split}/BACTERIAL/{split}{number}.png")
    write("train/VIRAL/1.png")
    given = open_catalog(str(tmp_path), resplit=False)
    assert open_catalog(str(tmp_path), task="binary") == given
    assert "val has no viral image" in describe(open_catalog(str(tmp_path), task="three_class"))


def test_rare_findings_of_one_class_are_split_together(tmp_path: Path, write: Write) -> None:
    for number in range(2):
        write(f"VIRAL/{number}.png")
        write(f"BACTERIAL/{number}.png")
    for number in range(8):
        write(f"NORMAL/{number}.png")
    for seed in range(5):
        check(open_catalog(str(tmp_path), seed=seed, task="binary"), task="binary")
