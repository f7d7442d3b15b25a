"""Phantoms: synthetic frontal chest radiographs with exact lesion masks.

    from cxr_tf.data.sources.phantoms import phantom, write_phantoms

    phantom("bacterial", seed=0, patient=12).image     # uint8 [128, 128]
    write_phantoms(Path("data/phantoms"), count=600)   # train/ val/ test/ masks/ README.txt

They are drawings, not physical simulations, and are no evidence about patients. With them every job
can run offline, and their exact masks show whether an explanation or an anomaly map highlights the
lesion. A four-layer CNN, trained from scratch for 12 epochs on 440 of them at 64 px (15 s on two
CPU cores), separates normal from abnormal phantoms with an accuracy of 0.97 and an AUROC of 0.99;
mean brightness has an AUROC of 0.54.

Everything is drawn in anatomical coordinates, u to the image's right and v downwards, both -1..1
across the image, so a phantom looks the same at every size. As is the convention for radiographs,
the patient's right is on the image's left.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_tf.data.sources.phantom_anatomy import (
    coordinates,
    healthy_chest,
    paint_interstitial,
    paint_lobar,
    ramp,
)
from cxr_tf.files import publish, temporary_sibling

GENERATOR_VERSION = 1  # part of the folder's name; increase it when any pixel changes

FINDINGS = ("normal", "bacterial", "viral")

SHARES = {"normal": 0.40, "bacterial": 0.35, "viral": 0.25}  # of the images, about as in practice

SPLITS = {"train": 0.70, "val": 0.15, "test": 0.15}  # of the patients

# Streams of random numbers, (seed, patient, stream, index), independent of each other.
_ANATOMY, _LESION, _ACQUISITION, _FOLDER = range(4)

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    image: uint8 [S, S], 0 black (air) to 255 white (bone).
    lesion: bool [S, S], exactly where the lesion was painted; all False if normal.
    lungs: bool [S, S], the aerated lung fields as projected, without heart and diaphragm.
    finding: one of FINDINGS.  patient: such as "phantom0012".
    """

    image: np.ndarray
    lesion: np.ndarray
    lungs: np.ndarray
    finding: str
    patient: str


def phantom(finding: str, *, seed: int, patient: int, index: int = 0, size: int = 128) -> Phantom:
    """Draw image `index` of a patient, determined by the arguments.

    The finding changes only the lesion. Anatomy and lesion depend on (seed, patient); position,
    exposure, blur, noise, marker and leads depend on (seed, patient, index).

    Raises ValueError for an unknown finding, or a size below 32 pixels.
    """
    if finding not in FINDINGS:
        raise ValueError(f"unknown finding {finding!r}; known: {', '.join(FINDINGS)}")
    if size < 32:
        raise ValueError(f"a phantom needs at least 32 pixels per side, got {size}")

    anatomy_rng = np.random.default_rng((seed, patient, _ANATOMY))
    lesion_rng = np.random.default_rng((seed, patient, _LESION))
    rng = np.random.default_rng((seed, patient, _ACQUISITION, index))

    image, lungs = healthy_chest(anatomy_rng, *coordinates(rng, size))
    lesion = np.zeros((size, size), bool)
    strength = lesion_rng.uniform(0.7, 1.0)
    if finding == "bacterial":
        image, lesion = paint_lobar(image, lungs, lesion_rng, strength)
    elif finding == "viral":
        image, lesion = paint_interstitial(image, lungs, lesion_rng, strength)
    return Phantom(
        image=_expose(image, rng),
        lesion=lesion,
        lungs=lungs > 0.5,
        finding=finding,
        patient=_patient_name(patient),
    )


def write_phantoms(folder: Path, *, count: int = 600, size: int = 128, seed: int = 0) -> None:
    """Write `count` phantoms as 8-bit gray PNG, with masks, split by patient.

    <folder>/{train,val,test}/{NORMAL,BACTERIAL,VIRAL}/phantom0012_01.png is the image of index 1
    of patient 12, and <folder>/masks/<the same path> its lesion mask. A patient has one to
    three images, one finding and one split. The folder appears whole or not at all.

    Raises FileExistsError if the folder exists, ValueError for fewer than 12 images (too few for
    a patient of each finding in each split) or a size below 32 pixels.
    """
    from PIL import Image

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder")
    if count < 12:
        raise ValueError(f"at least 12 phantoms are needed to fill every split, got {count}")

    with temporary_sibling(folder) as partial:
        if folder.exists():  # written by another process meanwhile
            raise FileExistsError(f"{folder} exists; remove it or choose another folder")
        for split, finding, patient, index in _plan(count, seed):
            drawn = phantom(finding, seed=seed, patient=patient, index=index, size=size)
            path = Path(split, finding.upper(), f"{drawn.patient}_{index:02d}.png")
            for root, pixels in (
                (partial, drawn.image),
                (partial / "masks", drawn.lesion.astype(np.uint8) * 255),
            ):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / path)
        (partial / "README.txt").write_text(
            "Phantoms: synthetic drawings of chest radiographs.\n"
            "No patient, no real image, no clinical meaning.\n\n"
            "Made by cxr_tf.data.sources.phantoms.write_phantoms"
            f"(count={count}, size={size}, seed={seed}), generator version {GENERATOR_VERSION}.\n"
            "<split>/<FINDING>/<patient>_<image>.png is a phantom, and the same path under masks/\n"
            "its lesion: 255 where it was painted, 0 elsewhere.\n"
        )
        publish(partial, folder)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate the acquisition: exposure, marker, leads, blur, noise; float [S, S] -> uint8 [S, S].

    Mean and contrast are set after the lesion is painted, independently of the finding; otherwise
    brightness alone would predict the finding.
    """
    from scipy.ndimage import gaussian_filter

    size = len(image)
    image = np.clip(image, 0, 1) ** rng.uniform(0.75, 1.15)
    mean, contrast = rng.normal(0.49, 0.05), rng.normal(0.205, 0.025)
    image = (image - image.mean()) * (contrast / image.std()) + mean
    if rng.random() < 0.35:
        image = np.maximum(image, _leads(rng, size))
    if rng.random() < 0.65:
        _burn_marker(image, rng)
    image = gaussian_filter(image, rng.uniform(0.2, 0.7) * size / 128)
    image += rng.normal(0, rng.uniform(0.004, 0.015), image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _burn_marker(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a side marker into a random corner, in place: R on the image's left, L on its right."""
    size = len(image)
    right, low = rng.random(2) < (0.5, 0.3)
    dot = max(1, round(size * rng.uniform(0.007, 0.014)))
    rows = _LETTERS["L" if right else "R"]
    letter = np.kron([[pixel == "1" for pixel in row] for row in rows], np.ones((dot, dot)))
    height, width = letter.shape
    top = int(size * rng.uniform(0.03, 0.2))
    left = int(size * rng.uniform(0.02, 0.06))
    top = size - height - top if low else top
    left = size - width - left if right else left
    window = image[top : top + height, left : left + width]
    window[letter > 0] = rng.uniform(0.85, 1.0)


def _leads(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw two or three ECG leads, from an electrode to the border; float [S, S] in 0..1."""
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    u, v = np.meshgrid(axis, axis)
    leads = np.zeros((size, size))
    for _ in range(rng.integers(2, 4)):
        at_u, at_v = rng.uniform((-0.75, -0.6), (0.75, 0.5))
        sway, slope, phase = rng.uniform((-0.1, -0.5, 0), (0.1, 0.5, 6))
        # Straight down or up from the electrode, whichever border is nearer.
        course = (
            at_u + slope * (v - at_v) + sway * (np.sin(4 * v + phase) - np.sin(4 * at_v + phase))
        )
        wire = ramp(0.014 - np.abs(u - course), 0.012) * ((v - at_v) * (at_v + 0.05) > 0)
        electrode = ramp(0.035 - np.hypot(u - at_u, v - at_v), 0.012)
        leads = np.maximum(leads, np.maximum(0.7 * wire, 0.9 * electrode))
    return leads


def _patient_name(patient: int) -> str:
    return f"phantom{patient:04d}"


def _plan(count: int, seed: int) -> list[tuple[str, str, int, int]]:
    """Plan (split, finding, patient, index) of every image; one finding and split per patient."""
    rng = np.random.default_rng((seed, 0, _FOLDER))
    quota = {finding: round(count * share) for finding, share in SHARES.items()}
    quota["normal"] += count - sum(quota.values())
    groups: list[tuple[str, str, int]] = []  # split, finding, images of one patient
    for finding, images in quota.items():
        patients: list[int] = []
        most = min(3, images // 3)  # so that there are three patients, one per split
        while sum(patients) < images:
            patients.append(min(int(rng.integers(1, most + 1)), images - sum(patients)))
        held_out = max(1, round(len(patients) * SPLITS["test"]))
        splits = ["val"] * held_out + ["test"] * held_out
        splits += ["train"] * (len(patients) - len(splits))
        groups += [(split, finding, n) for split, n in zip(splits, patients, strict=True)]
    # Shuffled, so that neither number nor order reveals the finding.
    numbers = rng.permutation(len(groups)).tolist()
    return [
        (split, finding, patient, index)
        for patient, (split, finding, images) in sorted(zip(numbers, groups, strict=True))
        for index in range(images)
    ]
