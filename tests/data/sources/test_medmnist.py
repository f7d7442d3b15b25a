"""PneumoniaMNIST's array file as a data set, and its two scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_tf.data.catalog import SPLITS
from cxr_tf.data.checks import check, describe
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.sources import medmnist
from cxr_tf.errors import UserError


def arrays(size: int = 28, count: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for split in SPLITS:
        made[f"{split}_images"] = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        made[f"{split}_labels"] = rng.integers(0, 2, (count, 1), dtype=np.uint8)
    return made


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pixels_labels_and_splits_are_preserved() -> None:
    made = arrays()
    np.savez_compressed("pneumoniamnist.npz", **made)
    catalog = open_catalog("pneumoniamnist.npz")
    check(catalog, task="binary")
    labels = catalog.labels("binary")
    for split in SPLITS:
        rows = catalog.rows(split)
        assert len(rows) == 20  # published, so not pooled, however small
        for row in rows:
            number = int(Path(catalog.paths[row]).stem)
            read = np.asarray(Image.open(catalog.paths[row]))
            np.testing.assert_array_equal(read, made[f"{split}_images"][number])
            assert labels[row] == made[f"{split}_labels"][number, 0]
    assert catalog.source == "pneumoniamnist.npz"


def test_a_changed_file_is_unpacked_again() -> None:
    np.savez("p.npz", **arrays(seed=1))
    folder = medmnist.unpack(Path("p.npz"))
    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert medmnist.unpack(Path("p.npz")) == folder
    assert written == {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    np.savez("p.npz", **arrays(seed=2))
    assert medmnist.unpack(Path("p.npz")) != folder


def test_leakage_of_a_published_split_is_noted_and_kept() -> None:
    made = arrays()
    made["val_images"][0] = made["train_images"][0]
    np.savez("p.npz", **made)
    catalog = open_catalog("p.npz")
    check(catalog, task="binary")
    assert "kept unchanged, although 1 image or patient appears" in describe(catalog)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("val_labels"), "val_labels"),
        (lambda a: a.update(train_images=a["train_images"][..., None]), "train_images is uint8"),
        (lambda a: a.update(train_images=a["train_images"] / 255), "train_images is float64"),
        (lambda a: a.update(test_labels=a["test_labels"] + 1), "test_labels must contain one"),
        (lambda a: a.update(test_labels=a["test_labels"][:5]), "test_labels must contain one"),
        (lambda a: a.update(train_images=np.array([{"run": "me"}])), "or contains Python objects"),
    ],
)
def test_invalid_arrays_are_refused_and_leave_no_files(spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    made = arrays()
    spoil(made)
    np.savez("p.npz", **made)
    with pytest.raises(UserError, match=message):
        open_catalog("p.npz")
    assert list(Path("data").iterdir()) == []


def test_a_truncated_file_is_refused() -> None:
    np.savez("p.npz", **arrays())
    whole = Path("p.npz").read_bytes()
    Path("p.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        open_catalog("p.npz")
    # A sound directory over a stream that is not.
    np.savez_compressed("p.npz", **arrays())
    spoilt = bytearray(Path("p.npz").read_bytes())
    spoilt[60:160] = bytes(100)
    Path("p.npz").write_bytes(spoilt)
    with pytest.raises(UserError, match="damaged"):
        open_catalog("p.npz")
    Path("p.npz").write_bytes(b"text")
    with pytest.raises(UserError, match="damaged"):
        open_catalog("p.npz")


def test_medmnist_scores_match_a_worked_example() -> None:
    labels = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.5, 0.4, 0.9])  # exactly 0.5 is negative there
    found = medmnist.scores(labels, np.stack([1 - positive, positive], 1))
    assert found == {"medmnist_auc": 0.75, "medmnist_acc": 0.75}


def test_scores_match_the_evaluator_of_medmnist() -> None:
    made = arrays(count=200)
    positive = np.random.default_rng(3).random(200).round(2)
    probabilities = np.stack([1 - positive, positive], 1)
    scores = medmnist.scores(made["test_labels"][:, 0], probabilities)
    # By `medmnist.evaluator.Evaluator` of medmnist 3.0.2, which needs PyTorch.
    assert scores["medmnist_auc"] == pytest.approx(0.52805, abs=1e-6)
    assert scores["medmnist_acc"] == pytest.approx(0.515, abs=1e-6)
