"""Phantoms: synthetic frontal chest radiographs whose lesions are known to the pixel.

    from cxr_tf.data.phantom import phantom, write_phantoms

    phantom("bacterial", seed=0, patient=12).image     # uint8 [128, 128]
    write_phantoms(Path("data/phantoms"), count=600)   # train/ val/ test/ masks/ README.txt

Drawings, not physics, and never evidence about patients: they let every job run offline, and,
since the place of the lesion is exact, they tell whether an explanation or an anomaly map looks
where it should. A four-layer CNN, trained from scratch for 12 epochs on 440 of them at 64 px (15 s
on two CPU cores), tells normal from sick with an accuracy of 0.97 and an AUROC of 0.99; the mean
brightness has an AUROC of 0.54.

Everything is drawn in anatomical coordinates, u to the image's right and v downwards, both -1..1
across the image, so a phantom looks the same at every size. As in every radiograph on a light box,
the patient's right is on the image's left.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_tf.paths import beside

GENERATOR_VERSION = 1  # bump when any pixel changes: it is a part of the folder's fingerprint
FINDINGS = ("normal", "bacterial", "viral")
SHARES = {"normal": 0.40, "bacterial": 0.35, "viral": 0.25}  # of the images, about as in practice
SPLITS = {"train": 0.70, "val": 0.15, "test": 0.15}  # of the patients

# Streams of random numbers, (seed, patient, stream, index): no draw of one part moves another part.
_ANATOMY, _LESION, _ACQUISITION, _FOLDER = range(4)

_LETTERS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    image: uint8 [S, S], 0 black (air) to 255 white (bone).
    lesion: bool [S, S], exactly where the lesion was painted; empty when normal.
    lungs: bool [S, S], the aerated lung fields as projected, without heart and diaphragm.
    finding: one of FINDINGS.  patient: such as "phantom0012".
    """

    image: np.ndarray
    lesion: np.ndarray
    lungs: np.ndarray
    finding: str
    patient: str


def phantom(finding: str, *, seed: int, patient: int, index: int = 0, size: int = 128) -> Phantom:
    """Draw image `index` of a patient, a function of the arguments alone.

    The finding changes nothing but the lesion: anatomy and lesion belong to (seed, patient), while
    position, exposure, blur, noise, marker and leads belong to (seed, patient, index).

    Raises ValueError for an unknown finding, or a size below 32 pixels.
    """
    if finding not in FINDINGS:
        raise ValueError(f"unknown finding {finding!r}; known: {', '.join(FINDINGS)}")
    if size < 32:
        raise ValueError(f"a phantom needs at least 32 pixels a side, got {size}")

    anatomy_rng = np.random.default_rng((seed, patient, _ANATOMY))
    lesion_rng = np.random.default_rng((seed, patient, _LESION))
    rng = np.random.default_rng((seed, patient, _ACQUISITION, index))

    image, lungs = _healthy_chest(anatomy_rng, *_coordinates(rng, size))
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
    of patient 12, and <folder>/masks/<the same path> its lesion, 0 or 255. A patient has one to
    three images, one finding and one split. The folder appears whole or not at all.

    Raises FileExistsError where the folder exists, ValueError for fewer than 12 images (too few for
    a patient of each finding in each split) or a size below 32 pixels.
    """
    from PIL import Image

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder")
    if count < 12:
        raise ValueError(f"at least 12 phantoms are needed to fill every split, got {count}")

    with beside(folder) as partial:
        if folder.exists():  # another process was at it
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
            "Made by cxr_tf.data.phantom.write_phantoms"
            f"(count={count}, size={size}, seed={seed}), generator version {GENERATOR_VERSION}.\n"
            "<split>/<FINDING>/<patient>_<image>.png is a phantom, and the same path under masks/\n"
            "its lesion: 255 where it was painted, 0 elsewhere.\n"
        )
        os.rename(partial, folder)


def paint_lobar(
    image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator, strength: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a bacterial-like consolidation: a lobe, or one or two soft-edged foci, dense, with air
    bronchograms.

    image: float32 [S, S] in 0..1, a phantom or a real healthy radiograph; left as it is.
    lungs: bool or float [S, S], the lung fields (1 inside). A lesion that reaches their border ends
    there as softly as they do: blur a hard mask by a pixel or two.
    strength: 0 (nothing) to 1 (as bright as the tissue around the lungs).

    Returns the painted image, float32 [S, S] in 0..1, and the lesion, bool [S, S], which does not
    depend on the strength. Where `lungs` is 0 no pixel changes.
    """
    lungs = np.asarray(lungs, np.float32)
    size = len(lungs)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    # A ragged edge: the distance from the focus is bent by smooth noise.
    ragged = 0.2 * np.clip(_noise(rng, size, 9), -2, 2)
    opacity = np.zeros_like(lungs)
    side = int(rng.integers(2))
    lobar, several = rng.random(2) < (0.3, 0.35)
    foci = 2 if several and not lobar else 1
    for focus in range(foci):
        lung = _halves(lungs)[(side + focus) % 2 if rng.random() < 0.5 else side]
        top, bottom, left, right = _box(lung)
        height, width = bottom - top, right - left
        along, across, tall, wide = rng.random(4)
        tilt = rng.uniform(-0.35, 0.35)
        if lobar:  # a lobe, above or below an oblique fissure
            fissure = top + height * (0.4 + 0.2 * along) + tilt * (columns - (left + right) / 2)
            distance = 1 + (rows - fissure) / (0.25 * height) * (1 if across < 0.4 else -1)
        else:
            row = top + height * (0.2 + 0.6 * along)
            inside = np.flatnonzero(lung[int(row)] > 0.5)
            column = inside[int((0.2 + 0.6 * across) * len(inside))] if len(inside) else left
            y = (rows - row) / (height * (0.16 + 0.14 * tall) / foci**0.6)
            x = (columns - column) / (width * (0.32 + 0.26 * wide) / foci**0.6)
            distance = np.hypot(y, x + tilt * y)
        opacity = np.maximum(opacity, lung * _ramp(1.25 - distance + ragged, 0.5))
    lesion = (opacity > 0.25) & (lungs > 0.5)
    # Air stays in the larger bronchi: dark branches within the white.
    bronchi = _branches(lungs, rng, primary=5, generations=2, thickness=0.006)
    mottled = 1 + 0.12 * _noise(rng, size, 24)
    opacity = strength * opacity * mottled * (1 - 0.4 * bronchi)
    return _opacify(image, lungs, opacity), lesion


def paint_interstitial(
    image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator, strength: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a viral-like pattern over both lungs: a fine net, thick bronchial walls, ground glass.

    Arguments and results as for `paint_lobar`.
    """
    lungs = np.asarray(lungs, np.float32)
    size = len(lungs)
    # Patchy, yet on both sides: no part of the lungs falls below 0.45.
    extent = lungs * np.clip(0.8 + 0.25 * _noise(rng, size, 6), 0.45, 1.2)
    # The zero crossings of smooth noise are thin closed lines: a reticular pattern.
    net = np.exp(-((_noise(rng, size, 30) / 0.4) ** 2))
    net *= np.clip(0.6 + 0.5 * _noise(rng, size, 14), 0, 1)  # broken here and there
    streaks = _branches(lungs, rng, primary=11, generations=3, thickness=0.007)
    haze = 0.22 + 0.06 * _noise(rng, size, 10)
    opacity = strength * extent * (haze + 0.45 * net + 0.6 * streaks)
    return _opacify(image, lungs, opacity), (extent > 0.25) & (lungs > 0.5)


# --- the healthy chest ----------------------------------------------------------------------------


def _coordinates(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """u, v float32 [S, S] of every pixel for a patient who stands a little askew."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    angle = np.deg2rad(rng.normal(0, 2.5))
    shift_u, shift_v = rng.normal(0, 0.035, 2)
    zoom = rng.uniform(0.94, 1.06)
    u, v = np.meshgrid(axis * zoom - shift_u, axis * zoom - shift_v)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * u + sin * v, cos * v - sin * u


def _healthy_chest(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One patient's chest before exposure: image and lungs, float32 [S, S] in 0..1."""
    size = len(u)
    width = rng.uniform(0.72, 0.86)  # of the inner chest wall, at its widest
    apex, base = rng.uniform(-0.78, -0.64), rng.uniform(0.34, 0.56)  # of the lungs
    heart = rng.uniform(0.85, 1.12)
    bend = rng.normal(0, 0.03)  # scoliosis
    rib_spacing, rib_start, rib_droop = rng.uniform((0.15, 0, 0.28), (0.19, 1, 0.5))
    lung_density = rng.uniform(-0.03, 0.06)  # a shallow breath or an obese patient looks whiter
    rib_contrast, vessel_contrast = rng.uniform((0.08, 0.05), (0.13, 0.10))
    clavicle_height, clavicle_rise = rng.uniform((-0.66, 0.05), (-0.52, 0.32))
    arm_lean = rng.uniform(0.05, 0.6)
    breast, nipple, jaw = rng.random(3)

    u = u - bend * np.sin(2.2 * v)
    x = np.abs(u)
    depth = np.clip((v - apex) / (base - apex), 0, 1)
    wall = width * (1 - (1 - depth) ** 2.1) ** 0.52 * (0.9 + 0.1 * depth)

    # Regions, each 0..1 with an edge as soft as its tangent to the beam.
    # Patient's right dome (image left) stands higher, the liver being under it.
    dome = base + 0.07 * _ramp(u, 0.25) + 1.5 * np.clip(x - 0.33, -0.2, 1) ** 2
    above_diaphragm = _ramp(dome - v, 0.035)
    # An ellipse along the heart's axis, its apex to the image's right.
    along = (u - 0.12) * 0.75 + (v - (base - 0.2)) * 0.66
    across = (v - (base - 0.2)) * 0.75 - (u - 0.12) * 0.66
    radius = np.hypot(along / (0.46 * heart), across / (0.28 * heart))
    heart_region = _ramp(1 - radius, 0.12)
    aorta = _ramp(1 - np.hypot((u - 0.12) / 0.11, (v - apex - 0.36) / 0.13), 0.2)
    vena = _ramp(0.135 + 0.05 * np.exp(-(((v - base + 0.45) / 0.2) ** 2)) - x, 0.05)
    mediastinum = 1 - (1 - heart_region) * (1 - aorta) * (1 - vena)
    thorax = _ramp(wall - x, 0.03)
    lungs = thorax * above_diaphragm * (1 - mediastinum)

    # Soft tissue: trunk, shoulders sloping from the neck, arms hanging off them, black air outside.
    trunk = _ramp(width + 0.12 + 0.04 * v - x, 0.05)
    shoulders = _ramp(v + 1.02 - 0.75 * np.clip(x - 0.24, 0, 1) ** 1.3, 0.06) * _ramp(
        -0.22 - v, 0.3
    )
    arm_axis = (x - 0.86 - arm_lean * (v + 0.5)) / np.hypot(1, arm_lean)
    below_shoulder = _ramp(v + 0.72, 0.2)
    arm = _ramp(0.15 - np.abs(arm_axis), 0.05) * below_shoulder
    body = 1 - (1 - trunk) * (1 - shoulders) * (1 - 0.8 * arm)
    thickness = 0.75 + 0.25 * np.sqrt(np.clip(1 - (x / 1.1) ** 2, 0, 1))
    image = 0.47 * body * thickness
    image += 0.30 * (1 - above_diaphragm) * _ramp(wall + 0.06 - x, 0.1)
    image += above_diaphragm * (0.13 * heart_region + 0.05 * aorta + 0.06 * vena)

    # Bones. Every rib at once: a periodic function of the height, bent along the rib's course.
    outward = x / width
    cage = _ramp(wall + 0.035 - x, 0.03) * _ramp(dome + 0.35 - v, 0.3)
    course = rib_droop * outward**2 - 0.05 * np.sin(3 * outward)
    posterior = _band((v - course) / rib_spacing + rib_start, 0.42)
    front_course = 0.55 * np.clip(1 - outward, 0, 1) ** 1.2 + rib_droop * (outward > 1)
    anterior = _band((v - front_course) / rib_spacing + rib_start + 0.45, 0.36)
    bone = posterior * (0.75 + 0.5 * outward) + 0.45 * anterior * _ramp(outward - 0.45, 0.4)
    bone *= cage * (1 - 0.45 * mediastinum) * (0.35 + 0.65 * above_diaphragm)
    # Along the wall the ribs are seen edge on.
    bone += 0.7 * np.exp(-(((x - wall - 0.01) / 0.025) ** 2)) * _ramp(depth - 0.06, 0.1) * cage
    image += rib_contrast * bone
    spine = _ramp(0.095 - x, 0.03)
    discs = 0.65 + 0.35 * np.cos(2 * np.pi * v / (0.62 * rib_spacing))
    image += spine * (0.08 + 0.08 * discs) - 0.11 * _ramp(0.05 - np.abs(u + 0.01), 0.03) * _ramp(
        apex + 0.38 - v, 0.15
    )  # less the trachea, full of air
    clavicle = clavicle_height - clavicle_rise * x + 0.05 * np.sin(6 * x + 0.5)
    clavicle_end = _ramp(x - 0.1, 0.04) * _ramp(0.78 - x, 0.05)
    image += 0.15 * _tube((v - clavicle) / 0.045) * clavicle_end
    image += 0.20 * _tube(arm_axis / 0.07) * below_shoulder

    # Lungs: air, pulmonary vessels, and the shadows that a beginner takes for a lesion.
    image -= (0.31 - lung_density) * lungs
    vessels = _branches(lungs, rng, primary=9, generations=3, thickness=0.006)
    image += vessel_contrast * vessels * lungs
    beside = x - 0.58 * width
    if breast < 0.35:
        image += 0.07 * _ramp(1 - np.hypot(beside / 0.34, (v - base + 0.12) / 0.36), 0.12)
    if nipple < 0.25:
        image += 0.08 * _ramp(1 - np.hypot(beside, v - base + 0.2) / 0.035, 0.4)
    if jaw < 0.4:
        image += 0.35 * _ramp(1 - np.hypot(u / 0.3, (v + 1.08) / 0.2), 0.2)
    image += 0.02 * body * (_noise(rng, size, 7) + 0.6 * _noise(rng, size, 28))
    # Film saturates: what lies behind a lot of tissue adds little.
    image = 1 - np.exp(-2.2 * np.maximum(image, 0))
    return image.astype(np.float32), lungs.astype(np.float32)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the radiograph: exposure, marker, leads, blur, noise; float [S, S] -> uint8 [S, S].

    Mean and contrast are drawn anew after the lesion is painted, whatever the finding; else
    brightness alone would tell.
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
    """Write the side into a random corner, in place: R on the image's left, L on its right."""
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
    """Two or three ECG leads, from an electrode to the image's border; float [S, S] in 0..1."""
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
        wire = _ramp(0.014 - np.abs(u - course), 0.012) * ((v - at_v) * (at_v + 0.05) > 0)
        electrode = _ramp(0.035 - np.hypot(u - at_u, v - at_v), 0.012)
        leads = np.maximum(leads, np.maximum(0.7 * wire, 0.9 * electrode))
    return leads


# --- brushes --------------------------------------------------------------------------------------


def _ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft step: 0 below -width, 1 above width, smooth between."""
    t = np.clip(distance * (0.5 / width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _band(phase: np.ndarray, share: float) -> np.ndarray:
    """Bands that fill `share` of every period 1, brighter at both edges, as cortical bone is."""
    from_centre = np.abs(phase - np.round(phase)) * (2 / share)  # 1 at the edge of the band
    return _ramp(1 - from_centre, 0.25) * (0.6 + 0.6 * np.minimum(from_centre, 1) ** 2)


def _tube(across: np.ndarray) -> np.ndarray:
    """The shadow of a hollow bone: `across` is -1..1 from wall to wall."""
    across = np.abs(across)
    return _ramp(1 - across, 0.25) * (0.6 + 0.6 * np.minimum(across, 1) ** 2)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise float32 [S, S], about normal(0, 1), with `cells` bumps a side at every size."""
    coarse = rng.standard_normal((cells + 2, cells + 2))
    # Each pixel is a Gaussian-weighted sum of the grid, separable: two small products of matrices.
    # In float64, cut to float32: BLAS sums in an order that depends on its number of threads.
    position = (np.arange(size) + 0.5) * (cells / size) + 0.5
    weights = np.exp(-(((position[:, None] - np.arange(cells + 2)) / 0.7) ** 2))
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    noise: np.ndarray = weights @ coarse @ weights.T
    return noise.astype(np.float32)


def _halves(lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lung fields apart: float [S, S] on the image's left, and on its right."""
    columns = np.arange(len(lungs))
    middle = lungs.sum(axis=0) @ columns / max(lungs.sum(), 1e-6)
    return lungs * (columns < middle), lungs * (columns >= middle)


def _box(lung: np.ndarray) -> tuple[int, int, int, int]:
    """top, bottom, left, right (pixels) of one lung; the image's middle where there is none."""
    rows, columns = np.flatnonzero((lung > 0.5).any(1)), np.flatnonzero((lung > 0.5).any(0))
    if not len(rows):
        middle = len(lung) // 2
        return middle, middle + 1, middle, middle + 1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _branches(
    lungs: np.ndarray, rng: np.random.Generator, *, primary: int, generations: int, thickness: float
) -> np.ndarray:
    """Vessels or bronchi, trees that grow from both hila and fade outwards; float32 [S, S] in 0..1.

    primary: branches that leave each hilum; each branch bears two of the next generation.
    thickness: of the twigs, as a part of the image's side.
    """
    from scipy.ndimage import gaussian_filter

    size = len(lungs)
    steps = np.linspace(0, 1, max(size // 2, 16))
    canvas = np.zeros(size * size)
    for side, lung in enumerate(_halves(lungs)):
        top, bottom, left, right = _box(lung)
        height = bottom - top
        lateral = -1 if side == 0 else 1
        hilum = top + 0.5 * height, (right if side == 0 else left) - 0.1 * lateral * (right - left)
        row = hilum[0] + rng.normal(0, 0.07 * height, primary)
        column = hilum[1] + rng.normal(0, 0.02 * height, primary)
        # 0 points laterally, and pi/2 down; evenly spread, since vessels fan out.
        angle = np.linspace(-1.5, 1.5, primary) + rng.normal(0, 0.15, primary)
        length = height * rng.uniform(0.35, 0.6, primary)
        weight = 1.0
        for _ in range(generations):
            bent = angle[:, None] + rng.normal(0, 0.35, len(angle))[:, None] * steps
            rows = row[:, None] + length[:, None] * steps * np.sin(bent)
            columns = column[:, None] + lateral * length[:, None] * steps * np.cos(bent)
            ink = np.broadcast_to(weight * (1 - 0.6 * steps), rows.shape)
            inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
            pixel = rows[inside].astype(int) * size + columns[inside].astype(int)
            # As many points a pixel whatever the length, hence length / points.
            ink = ink * (length[:, None] / len(steps))
            canvas += np.bincount(pixel, ink[inside], minlength=size * size)
            at = rng.integers(len(steps) // 4, len(steps), 2 * len(angle))
            parent = np.repeat(np.arange(len(angle)), 2)
            row, column = rows[parent, at], columns[parent, at]
            angle = bent[parent, at] + rng.normal(0, 0.6, len(parent))
            length = length[parent] * rng.uniform(0.4, 0.7, len(parent))
            weight *= 0.7
    sigma = thickness * size
    # A line of ink 1 a pixel, blurred, peaks at 1 / (sigma sqrt(2 pi)): give back its height.
    peak = max(sigma, 0.4) * np.sqrt(2 * np.pi)
    tree = gaussian_filter(canvas.reshape(size, size).astype(np.float32), sigma)
    return 1 - np.exp(-1.2 * peak * tree)


def _opacify(image: np.ndarray, lungs: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Raise the lungs towards the brightness of soft tissue by `opacity` (0..1), float32 [S, S].

    Half of the fine structure stays in sight: ribs lie over a consolidation, vessels drown in it.
    """
    from scipy.ndimage import gaussian_filter

    image = np.asarray(image, np.float32)
    outside = image[lungs < 0.2]
    tissue = np.percentile(outside, 75) if outside.size else 1.0
    background = 0.5 * (image + gaussian_filter(image, len(image) / 24))
    haze = np.clip(opacity, 0, 1) * np.maximum(tissue - background, 0)
    return np.minimum(image + haze, 1).astype(np.float32)


# --- the folder -----------------------------------------------------------------------------------


def _patient_name(patient: int) -> str:
    return f"phantom{patient:04d}"


def _plan(count: int, seed: int) -> list[tuple[str, str, int, int]]:
    """(split, finding, patient, index) of every image; one finding and one split to a patient."""
    rng = np.random.default_rng((seed, 0, _FOLDER))
    quota = {finding: round(count * share) for finding, share in SHARES.items()}
    quota["normal"] += count - sum(quota.values())
    groups: list[tuple[str, str, int]] = []  # split, finding, images of one patient
    for finding, images in quota.items():
        patients: list[int] = []
        most = min(3, images // 3)  # so that there are three patients, one a split
        while sum(patients) < images:
            patients.append(min(int(rng.integers(1, most + 1)), images - sum(patients)))
        held_out = max(1, round(len(patients) * SPLITS["test"]))
        splits = ["val"] * held_out + ["test"] * held_out
        splits += ["train"] * (len(patients) - len(splits))
        groups += [(split, finding, n) for split, n in zip(splits, patients, strict=True)]
    # Shuffled, so that neither number nor order tells the finding.
    numbers = rng.permutation(len(groups)).tolist()
    return [
        (split, finding, patient, index)
        for patient, (split, finding, images) in sorted(zip(numbers, groups, strict=True))
        for index in range(images)
    ]
