"""Phantoms: lesions where the finding puts them, and nothing else that reveals the finding."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_tf.data.sources.phantom_anatomy import paint_interstitial, paint_lobar
from cxr_tf.data.sources.phantoms import FINDINGS, Phantom, phantom, write_phantoms


@cache
def cohort(seed: int = 0, patients: int = 200, size: int = 64) -> list[Phantom]:
    """Return phantoms of all findings in turn, each of a different patient."""
    return [
        phantom(finding, seed=seed, patient=3 * patient + k, size=size)
        for patient in range(patients)
        for k, finding in enumerate(FINDINGS)
    ]


def local_features(images: np.ndarray) -> np.ndarray:
    """Return the blurred images and local variances at two scales, like a CNN's first layers."""
    from scipy.ndimage import gaussian_filter

    images = images / 255.0
    images -= images.mean((1, 2), keepdims=True)
    images /= images.std((1, 2), keepdims=True)
    features = [gaussian_filter(images, (0, 2, 2))[:, 2::4, 2::4]]
    for sigma in (1, 2):
        fine = images - gaussian_filter(images, (0, sigma, sigma))
        features.append(np.log(gaussian_filter(fine**2, (0, 3, 3))[:, 4::6, 4::6] + 1e-4))
    return np.hstack([part.reshape(len(images), -1) for part in features])


@pytest.mark.parametrize(("statistic", "limit"), [(np.mean, 0.58), (np.std, 0.65)])
@pytest.mark.parametrize("finding", ["sick", "bacterial", "viral"])
def test_exposure_does_not_reveal_the_finding(statistic, limit: float, finding: str) -> None:
    from sklearn.metrics import roc_auc_score

    shown = [p for p in cohort() if finding == "sick" or p.finding in ("normal", finding)]
    sick = [p.finding != "normal" for p in shown]
    auroc = roc_auc_score(sick, [statistic(p.image) for p in shown])
    assert max(auroc, 1 - auroc) < limit


def test_local_texture_predicts_the_finding_of_new_patients() -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = local_features(np.stack([p.image for p in cohort()]))
    findings = np.array([p.finding for p in cohort()])
    model = make_pipeline(
        StandardScaler(), PCA(60, random_state=0), LogisticRegression(C=0.05, max_iter=1000)
    )
    model.fit(features[:402], findings[:402])
    assert balanced_accuracy_score(findings[402:], model.predict(features[402:])) >= 0.80


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_phantom_is_determined_by_its_arguments(finding: str) -> None:
    first = phantom(finding, seed=3, patient=7, index=1, size=64)
    phantom("viral", seed=3, patient=6, size=64)
    again = phantom(finding, seed=3, patient=7, index=1, size=64)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.lesion.tobytes() == again.lesion.tobytes()
    for other in ({"seed": 4}, {"patient": 8}, {"index": 2}):
        changed = phantom(finding, **{"seed": 3, "patient": 7, "index": 1, "size": 64, **other})
        assert (changed.image != first.image).mean() > 0.5


def test_location_and_size_of_lesions_match_the_finding() -> None:
    for p in cohort():
        assert p.image.dtype == np.uint8
        assert p.lesion.shape == p.lungs.shape == p.image.shape == (64, 64)
        assert 0.1 < p.lungs.mean() < 0.5
        assert not (p.lesion & ~p.lungs).any()
        left, right = p.lungs.copy(), p.lungs.copy()
        left[:, 32:], right[:, :32] = False, False
        share = p.lesion.sum() / p.lungs.sum()
        if p.finding == "normal":
            assert share == 0
        elif p.finding == "bacterial":
            assert 0.03 < share < 0.6
        else:
            assert min(p.lesion[left].mean(), p.lesion[right].mean()) > 0.8


@pytest.mark.parametrize("finding", ["bacterial", "viral"])
def test_the_finding_changes_only_lesion_pixels(finding: str) -> None:
    for patient in range(20):
        healthy = phantom("normal", seed=1, patient=patient, size=96)
        sick = phantom(finding, seed=1, patient=patient, size=96)
        # The exposure was drawn after the painting: undo it by the curve that fits the outside.
        curve = np.polyfit(healthy.image[~sick.lungs], sick.image[~sick.lungs], 2)
        change = np.abs(sick.image - np.polyval(curve, healthy.image))
        assert change[sick.lesion].mean() > 4 * change[~sick.lungs].mean()


@pytest.mark.parametrize("paint", [paint_lobar, paint_interstitial])
def test_painting_changes_only_the_lungs(paint) -> None:
    image = np.full((80, 80), 0.8, np.float32)
    lungs = np.zeros((80, 80), bool)
    lungs[15:60, 10:34] = lungs[15:60, 46:70] = True
    image[lungs] = 0.3
    before = image.copy()
    painted, lesion = paint(image, lungs, np.random.default_rng(0), 1.0)
    faint, same_lesion = paint(image, lungs, np.random.default_rng(0), 0.3)
    assert painted.dtype == np.float32
    assert lesion.dtype == bool
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(painted[~lungs], before[~lungs])
    np.testing.assert_array_equal(lesion, same_lesion)
    brighter, faintly = (painted - before)[lesion].mean(), (faint - before)[lesion].mean()
    assert brighter > 0.08
    assert brighter > 2 * faintly > 0
    assert painted.max() <= 1


def test_phantom_folder_is_complete_and_split_by_patient_and_never_overwritten(
    tmp_path: Path,
) -> None:
    from PIL import Image

    folder = tmp_path / "data" / "phantoms"
    write_phantoms(folder, count=60, size=32, seed=5)
    images = sorted(p.relative_to(folder) for p in folder.glob("[tv]*/*/*.png"))
    masks = sorted(p.relative_to(folder / "masks") for p in folder.glob("masks/*/*/*.png"))
    assert images == masks
    assert len(images) == 60
    assert [sum(f"/{f.upper()}/" in str(p) for p in images) for f in FINDINGS] == [24, 21, 15]

    places: dict[str, set[Path]] = {}
    for path in images:
        places.setdefault(path.stem.split("_")[0], set()).add(path.parent)
    assert all(len(place) == 1 for place in places.values())
    assert {str(place.pop().parent) for place in places.values()} == {"train", "val", "test"}

    path = images[-1]
    patient, index = path.stem.removeprefix("phantom").split("_")
    drawn = phantom(path.parts[1].lower(), seed=5, patient=int(patient), index=int(index), size=32)
    with Image.open(folder / path) as image, Image.open(folder / "masks" / path) as mask:
        assert image.mode == mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), drawn.image)
        np.testing.assert_array_equal(np.asarray(mask), drawn.lesion * np.uint8(255))
    assert "synthetic" in (folder / "README.txt").read_text()

    before = digest(folder)
    with pytest.raises(FileExistsError, match="exists"):
        write_phantoms(folder, count=12, size=32)
    write_phantoms(tmp_path / "again", count=60, size=32, seed=5)
    assert digest(folder) == digest(tmp_path / "again") == before


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    parts = [str(p.relative_to(folder)).encode() + p.read_bytes() for p in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_phantom_folder_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    save = Image.Image.save

    def broken(image: Image.Image, path: Path) -> None:
        if path.name.endswith("_01.png"):
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "phantoms", count=30, size=32)
    assert list(tmp_path.iterdir()) == []


def test_invalid_phantom_settings_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="normal, bacterial, viral"):
        phantom("fungal", seed=0, patient=0)
    with pytest.raises(ValueError, match="32"):
        phantom("normal", seed=0, patient=0, size=16)
    with pytest.raises(ValueError, match="12"):
        write_phantoms(tmp_path / "few", count=5)
