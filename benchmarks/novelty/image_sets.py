"""Images that a chest X-ray classifier should refuse, and radiographs with acquisition shifts.

All sets are uint8 [N, S, S, 1] at the classifier's size.
"""

import numpy as np
from scipy import ndimage

from cxr_tf.data.acquisition.shifts import SHIFTS
from cxr_tf.data.sources.phantoms import FINDINGS, phantom

# Acquisition shifts under which a radiograph should still be accepted.
MILD = ("brighter", "darker", "blurred", "lit from below", "closer", "farther")

# Photographs that are installed with scikit-image.
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "moon", "page", "rocket", "text"),
)


def to_refuse(images: np.ndarray, *, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return sets of images unlike chest radiographs, some of them derived from `images`."""
    size = images.shape[1]
    rng = np.random.default_rng(seed)
    return {
        "blank": blank(size),
        "noise": noise(size, count, rng),
        "photographs": photographs(size, count, rng),
        "phantoms": frontal_phantoms(size, count, seed),
        "lateral phantoms": lateral_phantoms(size, count, rng),
        "upside down": images[:, ::-1, ::-1],
        "rotated by 90°": np.rot90(images, axes=(1, 2)),
        "inverted": 255 - images,
        "mirrored": images[:, :, ::-1],
        "cropped to a shoulder": magnified(images, 0.0, 0.0, 0.4),
        "cropped to the abdomen": magnified(images, 0.6, 0.3, 0.4),
    }


def to_answer(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the radiographs under each acquisition shift, the mild ones first."""
    names = [*MILD, *(name for name in SHIFTS if name not in MILD)]
    return {name: SHIFTS[name](images) for name in names}


def blank(size: int) -> np.ndarray:
    """Return uniform images of 26 grey levels from black to white."""
    levels = np.linspace(0, 255, 26).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (26, size, size, 1))


def noise(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return images of noise: a third each of uniform, Gaussian, and smooth noise."""
    third = -(-count // 3)
    shape = (third, size, size)
    uniform = rng.uniform(0, 255, shape)
    gaussian = rng.normal(128, 40, shape)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), (0, size / 20, size / 20))
    smooth = 128 + 50 * smooth / smooth.std()
    return _as_pixels(np.concatenate([uniform, gaussian, smooth])[:count, ..., None])


def photographs(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random square crops of greyscale photographs; needs scikit-image."""
    import skimage.data
    from PIL import Image

    pictures = [
        Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("L")
        for name in PHOTOGRAPHS
    ]
    crops = []
    for k in range(count):
        picture = pictures[k % len(pictures)]
        side = int(rng.uniform(0.5, 1.0) * min(picture.size))
        left = int(rng.integers(0, picture.width - side + 1))
        top = int(rng.integers(0, picture.height - side + 1))
        crop = picture.crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(crops)[..., None]


def frontal_phantoms(size: int, count: int, seed: int) -> np.ndarray:
    """Return synthetic frontal radiographs."""
    images = [phantom(FINDINGS[k % 3], seed=seed, patient=k, size=size).image for k in range(count)]
    return np.stack(images)[..., None]


def lateral_phantoms(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return simple lateral phantoms: dark thorax, bright spine, heart and diaphragm."""
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = []
    for _ in range(count):
        j = rng.uniform(-0.06, 0.06, 8)
        body = _disc(u - j[0], v, 0.8 + j[1], 1.3, 0.15)
        lung = _disc(u + 0.05 - j[2], v + 0.1, 0.52 + j[3], 0.72, 0.2)
        heart = _disc(u + 0.2 - j[4], v - 0.25, 0.28, 0.3 + j[5], 0.3)
        diaphragm = 1 / (1 + np.exp(-(v - 0.5 + 0.25 * u - j[6]) / 0.04))
        spine = np.exp(-(((u - 0.6 + 0.15 * v**2 - j[7]) / 0.1) ** 2))
        spine *= 0.8 + 0.2 * np.cos(v * 22)
        image = 150 * body - 95 * lung * (1 - diaphragm) + 55 * heart + 70 * spine * body
        image += ndimage.gaussian_filter(rng.normal(0, 30, image.shape), size / 60)
        images.append(_as_pixels(image))
    return np.stack(images)[..., None]


def magnified(images: np.ndarray, top: float, left: float, side: float) -> np.ndarray:
    """Crop a square, given in shares of the images' side, and resize it to the full size."""
    size = images.shape[1]
    first, second, length = (round(x * size) for x in (top, left, side))
    crop = images[:, first : first + length, second : second + length].astype(np.float32)
    zoom = size / crop.shape[1]
    return _as_pixels(ndimage.zoom(crop, (1, zoom, zoom, 1), order=1))


def _disc(u: np.ndarray, v: np.ndarray, width: float, height: float, blur: float) -> np.ndarray:
    return 1 / (1 + np.exp((np.hypot(u / width, v / height) - 1) / (blur / 2)))


def _as_pixels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)
