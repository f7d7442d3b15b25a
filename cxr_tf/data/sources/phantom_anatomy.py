"""Anatomy of phantoms: chest, ribs, vessels and lesions, drawn from random numbers."""

import numpy as np


def paint_lobar(
    image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator, strength: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a bacterial-like consolidation with air bronchograms: a lobe, or one or two soft foci.

    image: float32 [S, S] in 0..1, a phantom or a real healthy radiograph; not modified.
    lungs: bool or float [S, S], the lung fields (1 inside). A lesion that reaches their border ends
    as sharply as this mask does, so blur a hard mask by a pixel or two.
    strength: 0 (nothing) to 1 (as bright as the tissue around the lungs).

    Returns the painted image, float32 [S, S] in 0..1, and the lesion, bool [S, S], which does not
    depend on the strength. Where `lungs` is 0 no pixel changes.
    """
    lungs = np.asarray(lungs, np.float32)
    size = len(lungs)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    # A ragged edge: the distance from the focus is distorted by smooth noise.
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
        opacity = np.maximum(opacity, lung * ramp(1.25 - distance + ragged, 0.5))
    lesion = (opacity > 0.25) & (lungs > 0.5)
    # Air bronchograms: the larger bronchi stay dark within the opacity.
    bronchi = _branches(lungs, rng, primary=5, generations=2, thickness=0.006)
    mottled = 1 + 0.12 * _noise(rng, size, 24)
    opacity = strength * opacity * mottled * (1 - 0.4 * bronchi)
    return _opacify(image, lungs, opacity), lesion


def paint_interstitial(
    image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator, strength: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a viral-like pattern over both lungs: a fine net, thick bronchial walls, ground glass.

    The arguments and results are those of `paint_lobar`.
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


def coordinates(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return u, v float32 [S, S] of every pixel, for a slightly rotated and shifted patient."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    angle = np.deg2rad(rng.normal(0, 2.5))
    shift_u, shift_v = rng.normal(0, 0.035, 2)
    zoom = rng.uniform(0.94, 1.06)
    u, v = np.meshgrid(axis * zoom - shift_u, axis * zoom - shift_v)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * u + sin * v, cos * v - sin * u


def healthy_chest(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one patient's chest before exposure: image and lungs, float32 [S, S] in 0..1."""
    size = len(u)
    width = rng.uniform(0.72, 0.86)  # of the inner chest wall, at its widest
    apex, base = rng.uniform(-0.78, -0.64), rng.uniform(0.34, 0.56)  # of the lungs
    heart = rng.uniform(0.85, 1.12)
    bend = rng.normal(0, 0.03)  # scoliosis
    rib_spacing, rib_start, rib_droop = rng.uniform((0.15, 0, 0.28), (0.19, 1, 0.5))
    lung_density = rng.uniform(
        -0.03, 0.06
    )  # a shallow breath or an obese patient gives whiter lungs
    rib_contrast, vessel_contrast = rng.uniform((0.08, 0.05), (0.13, 0.10))
    clavicle_height, clavicle_rise = rng.uniform((-0.66, 0.05), (-0.52, 0.32))
    arm_lean = rng.uniform(0.05, 0.6)
    breast, nipple, jaw = rng.random(3)

    u = u - bend * np.sin(2.2 * v)
    x = np.abs(u)
    depth = np.clip((v - apex) / (base - apex), 0, 1)
    wall = width * (1 - (1 - depth) ** 2.1) ** 0.52 * (0.9 + 0.1 * depth)

    # Regions, each 0..1 with soft edges.
    # The right dome of the diaphragm (image left) is higher, above the liver.
    dome = base + 0.07 * ramp(u, 0.25) + 1.5 * np.clip(x - 0.33, -0.2, 1) ** 2
    above_diaphragm = ramp(dome - v, 0.035)
    # An ellipse along the heart's axis, its apex to the image's right.
    along = (u - 0.12) * 0.75 + (v - (base - 0.2)) * 0.66
    across = (v - (base - 0.2)) * 0.75 - (u - 0.12) * 0.66
    radius = np.hypot(along / (0.46 * heart), across / (0.28 * heart))
    heart_region = ramp(1 - radius, 0.12)
    aorta = ramp(1 - np.hypot((u - 0.12) / 0.11, (v - apex - 0.36) / 0.13), 0.2)
    vena = ramp(0.135 + 0.05 * np.exp(-(((v - base + 0.45) / 0.2) ** 2)) - x, 0.05)
    mediastinum = 1 - (1 - heart_region) * (1 - aorta) * (1 - vena)
    thorax = ramp(wall - x, 0.03)
    lungs = thorax * above_diaphragm * (1 - mediastinum)

    # Soft tissue: trunk, shoulders sloping from the neck, and arms, with black air outside.
    trunk = ramp(width + 0.12 + 0.04 * v - x, 0.05)
    shoulders = ramp(v + 1.02 - 0.75 * np.clip(x - 0.24, 0, 1) ** 1.3, 0.06) * ramp(-0.22 - v, 0.3)
    arm_axis = (x - 0.86 - arm_lean * (v + 0.5)) / np.hypot(1, arm_lean)
    below_shoulder = ramp(v + 0.72, 0.2)
    arm = ramp(0.15 - np.abs(arm_axis), 0.05) * below_shoulder
    body = 1 - (1 - trunk) * (1 - shoulders) * (1 - 0.8 * arm)
    thickness = 0.75 + 0.25 * np.sqrt(np.clip(1 - (x / 1.1) ** 2, 0, 1))
    image = 0.47 * body * thickness
    image += 0.30 * (1 - above_diaphragm) * ramp(wall + 0.06 - x, 0.1)
    image += above_diaphragm * (0.13 * heart_region + 0.05 * aorta + 0.06 * vena)

    # Bones. All ribs at once: a periodic function of the height, bent along the rib's course.
    outward = x / width
    cage = ramp(wall + 0.035 - x, 0.03) * ramp(dome + 0.35 - v, 0.3)
    course = rib_droop * outward**2 - 0.05 * np.sin(3 * outward)
    posterior = _band((v - course) / rib_spacing + rib_start, 0.42)
    front_course = 0.55 * np.clip(1 - outward, 0, 1) ** 1.2 + rib_droop * (outward > 1)
    anterior = _band((v - front_course) / rib_spacing + rib_start + 0.45, 0.36)
    bone = posterior * (0.75 + 0.5 * outward) + 0.45 * anterior * ramp(outward - 0.45, 0.4)
    bone *= cage * (1 - 0.45 * mediastinum) * (0.35 + 0.65 * above_diaphragm)
    # Along the chest wall the ribs are seen edge on.
    bone += 0.7 * np.exp(-(((x - wall - 0.01) / 0.025) ** 2)) * ramp(depth - 0.06, 0.1) * cage
    image += rib_contrast * bone
    spine = ramp(0.095 - x, 0.03)
    discs = 0.65 + 0.35 * np.cos(2 * np.pi * v / (0.62 * rib_spacing))
    image += spine * (0.08 + 0.08 * discs) - 0.11 * ramp(0.05 - np.abs(u + 0.01), 0.03) * ramp(
        apex + 0.38 - v, 0.15
    )  # minus the trachea, which is full of air
    clavicle = clavicle_height - clavicle_rise * x + 0.05 * np.sin(6 * x + 0.5)
    clavicle_end = ramp(x - 0.1, 0.04) * ramp(0.78 - x, 0.05)
    image += 0.15 * _tube((v - clavicle) / 0.045) * clavicle_end
    image += 0.20 * _tube(arm_axis / 0.07) * below_shoulder

    # Lungs: air, pulmonary vessels, and shadows that can be mistaken for a lesion.
    image -= (0.31 - lung_density) * lungs
    vessels = _branches(lungs, rng, primary=9, generations=3, thickness=0.006)
    image += vessel_contrast * vessels * lungs
    beside = x - 0.58 * width
    if breast < 0.35:
        image += 0.07 * ramp(1 - np.hypot(beside / 0.34, (v - base + 0.12) / 0.36), 0.12)
    if nipple < 0.25:
        image += 0.08 * ramp(1 - np.hypot(beside, v - base + 0.2) / 0.035, 0.4)
    if jaw < 0.4:
        image += 0.35 * ramp(1 - np.hypot(u / 0.3, (v + 1.08) / 0.2), 0.2)
    image += 0.02 * body * (_noise(rng, size, 7) + 0.6 * _noise(rng, size, 28))
    # Film saturates: structures behind much tissue add little.
    image = 1 - np.exp(-2.2 * np.maximum(image, 0))
    return image.astype(np.float32), lungs.astype(np.float32)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Compute a soft step: 0 below -width, 1 above width, and smooth in between."""
    t = np.clip(distance * (0.5 / width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _band(phase: np.ndarray, share: float) -> np.ndarray:
    """Draw bands of period 1 that fill `share` of it, brighter at both edges like cortical bone."""
    from_centre = np.abs(phase - np.round(phase)) * (2 / share)  # 1 at the edge of the band
    return ramp(1 - from_centre, 0.25) * (0.6 + 0.6 * np.minimum(from_centre, 1) ** 2)


def _tube(across: np.ndarray) -> np.ndarray:
    """Draw the shadow of a hollow bone: `across` is -1..1 from wall to wall."""
    across = np.abs(across)
    return ramp(1 - across, 0.25) * (0.6 + 0.6 * np.minimum(across, 1) ** 2)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draw smooth, roughly standard normal noise, float32 [S, S], with `cells` bumps per side."""
    coarse = rng.standard_normal((cells + 2, cells + 2))
    # Each pixel is a Gaussian-weighted sum of the grid, separable: two small matrix products.
    # Computed in float64, then rounded to float32, because the order in which BLAS sums depends on
    # the number of threads.
    position = (np.arange(size) + 0.5) * (cells / size) + 0.5
    weights = np.exp(-(((position[:, None] - np.arange(cells + 2)) / 0.7) ** 2))
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    noise: np.ndarray = weights @ coarse @ weights.T
    return noise.astype(np.float32)


def _halves(lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separate the lung fields: float [S, S] on the image's left, and on its right."""
    columns = np.arange(len(lungs))
    middle = lungs.sum(axis=0) @ columns / max(lungs.sum(), 1e-6)
    return lungs * (columns < middle), lungs * (columns >= middle)


def _box(lung: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right (pixels) of one lung; the image's centre if it is empty."""
    rows, columns = np.flatnonzero((lung > 0.5).any(1)), np.flatnonzero((lung > 0.5).any(0))
    if not len(rows):
        middle = len(lung) // 2
        return middle, middle + 1, middle, middle + 1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _branches(
    lungs: np.ndarray, rng: np.random.Generator, *, primary: int, generations: int, thickness: float
) -> np.ndarray:
    """Draw vessels or bronchi: trees from both hila that fade outwards; float32 [S, S] in 0..1.

    primary: branches that leave each hilum; each branch has two of the next generation.
    thickness: of the branches, as a share of the image's side.
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
        # 0 points laterally, and pi/2 down; evenly spaced, since vessels fan out.
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
            # The same ink per pixel whatever the length, hence length / points.
            ink = ink * (length[:, None] / len(steps))
            canvas += np.bincount(pixel, ink[inside], minlength=size * size)
            at = rng.integers(len(steps) // 4, len(steps), 2 * len(angle))
            parent = np.repeat(np.arange(len(angle)), 2)
            row, column = rows[parent, at], columns[parent, at]
            angle = bent[parent, at] + rng.normal(0, 0.6, len(parent))
            length = length[parent] * rng.uniform(0.4, 0.7, len(parent))
            weight *= 0.7
    sigma = thickness * size
    # A blurred line of ink 1 per pixel peaks at 1 / (sigma sqrt(2 pi)): restore its height.
    peak = max(sigma, 0.4) * np.sqrt(2 * np.pi)
    tree = gaussian_filter(canvas.reshape(size, size).astype(np.float32), sigma)
    return 1 - np.exp(-1.2 * peak * tree)


def _opacify(image: np.ndarray, lungs: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Raise the lungs towards the brightness of soft tissue by `opacity` (0..1), float32 [S, S].

    Half of the fine structure stays visible: ribs overlie a consolidation, vessels are hidden.
    """
    from scipy.ndimage import gaussian_filter

    image = np.asarray(image, np.float32)
    outside = image[lungs < 0.2]
    tissue = np.percentile(outside, 75) if outside.size else 1.0
    background = 0.5 * (image + gaussian_filter(image, len(image) / 24))
    haze = np.clip(opacity, 0, 1) * np.maximum(tissue - background, 0)
    return np.minimum(image + haze, 1).astype(np.float32)
