"""What a data set is like before anything is trained on it, and what in it could mislead.

    found = inspect_images(open_catalog("chest_xray"))
    for warning in warnings(found): ...

Two questions that a table of counts does not answer. Are there copies that no hash of bytes finds,
because they were resized or compressed again? And do size, aspect or brightness tell the class on
their own? A network takes such a shortcut where there is one, and loses it in the next hospital.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from warnings import catch_warnings, simplefilter

import numpy as np

from cxr_tf.data.catalog import Catalog, contradict

THUMBNAIL = 64  # pixels a side

# The perceptual hash: signs of the 16 x 16 lowest frequencies of a thumbnail against their median,
# without the mean (Zauner 2010, section 3.2.2, with finer bits, since chests look alike). On the
# 5,232 images of Kermany's train and val, copies differ in no bit and the nearest two other images
# in 38 of 255; with 63 bits, as is usual, hundreds of strangers lie within 5.
HASH_SIDE = 16

NEAR = 20

# Values of 12 bits in a file of 16 end at 16 of 255.
DARK = 24

# A shortcut is worth a warning from this AUROC on, where chance is an unlikely explanation.
SHORTCUT_AUROC = 0.70

SHORTCUT_P = 0.001


@dataclass(frozen=True)
class Shortcut:
    """How well one number, known without looking at the lungs, tells one finding from the rest.

    `auroc` is at least 0.5; `higher` says whether the finding has the higher values. `p` is that of
    the two-sided Mann-Whitney test.
    """

    measure: str
    finding: str
    auroc: float
    higher: bool
    p: float

    @property
    def suspicious(self) -> bool:
        """Whether to warn of it."""
        return self.auroc >= SHORTCUT_AUROC and self.p < SHORTCUT_P


@dataclass(frozen=True)
class Inspection:
    """A catalogue, and what its images are like.

    thumbnails: uint8 [N, 64, 64], zero where unreadable. measures: float [N] each, NaN where
    unreadable: width, height (pixels), size (pixels in all), aspect (width by height), brightness
    (mean of 0..255). near: pairs of rows that look alike and are not the same bytes.
    """

    catalog: Catalog
    thumbnails: np.ndarray
    unreadable: dict[int, str]
    measures: dict[str, np.ndarray]
    near: list[tuple[int, int]]
    shortcuts: list[Shortcut]


def inspect_images(catalog: Catalog) -> Inspection:
    """Reads every image, by the decoder that training and serving use."""
    from PIL import Image

    from cxr_tf.data.decoding import load_images

    images, unreadable = load_images(catalog.paths, THUMBNAIL)
    thumbnails = np.asarray(images)[..., 0]
    readable = np.setdiff1d(np.arange(len(catalog)), list(unreadable))
    with ThreadPoolExecutor() as pool, catch_warnings():
        simplefilter("ignore", Image.DecompressionBombWarning)  # only headers are read
        sizes = np.array(list(pool.map(_size, catalog.paths)), float).reshape(-1, 2)
    sizes[list(unreadable)] = np.nan
    measures = {
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        "size": sizes[:, 0] * sizes[:, 1],
        "aspect": sizes[:, 0] / sizes[:, 1],
        "brightness": np.where(
            np.isin(np.arange(len(catalog)), readable), thumbnails.mean(axis=(1, 2)), np.nan
        ),
    }
    near = [(int(readable[a]), int(readable[b])) for a, b in near_duplicates(thumbnails[readable])]
    digests = [r.digest for r in catalog.radiographs]
    return Inspection(
        catalog=catalog,
        thumbnails=thumbnails,
        unreadable=unreadable,
        measures=measures,
        near=[(a, b) for a, b in near if digests[a] != digests[b]],
        shortcuts=shortcuts(catalog, measures),
    )


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 [N, 64, 64] -> bool [N, 255]; brightness, contrast and compression hardly change it."""
    from scipy.fft import dctn

    spectrum = dctn(thumbnails.astype(np.float32), axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE]
    spectrum = spectrum.reshape(len(thumbnails), -1)[:, 1:]
    return spectrum > np.median(spectrum, axis=1, keepdims=True)


def near_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows (first < second) whose hashes differ in at most `NEAR` bits."""
    if not len(thumbnails):
        return []
    signs = np.where(perceptual_hash(thumbnails), np.float32(1), np.float32(-1))
    # A blank image has no structure, and every blank one the same hash.
    blank = thumbnails.reshape(len(thumbnails), -1).std(axis=1) < 1
    found: list[tuple[int, int]] = []
    for start in range(0, len(signs), 1024):
        different = (signs.shape[1] - signs[start : start + 1024] @ signs.T) / 2
        for first, second in np.argwhere(different <= NEAR) + np.array([start, 0]):
            if first < second and not (blank[first] and blank[second]):
                found.append((int(first), int(second)))
    return found


def shortcuts(catalog: Catalog, measures: dict[str, np.ndarray]) -> list[Shortcut]:
    """For size, aspect and brightness, the finding that each tells best from all others."""
    from scipy.stats import mannwhitneyu

    findings = np.array([r.finding for r in catalog.radiographs])
    best = []
    for measure in ("size", "aspect", "brightness"):
        values = measures[measure]
        candidates = []
        for finding in catalog.findings:
            known = np.isfinite(values)
            own, rest = values[known & (findings == finding)], values[known & (findings != finding)]
            if not len(own) or not len(rest):
                continue
            test = mannwhitneyu(own, rest)
            # U over the number of pairs is the AUROC (Hanley and McNeil 1982).
            auroc = float(test.statistic) / (len(own) * len(rest))
            p = float(test.pvalue) if np.isfinite(test.pvalue) else 1.0
            candidates.append(Shortcut(measure, finding, max(auroc, 1 - auroc), auroc > 0.5, p))
        if candidates:
            best.append(max(candidates, key=lambda s: s.auroc))
    return best


def warnings(found: Inspection) -> list[str]:
    """What a user should know before trusting a model of these data; nothing of it stops a run."""
    said = []
    for s in found.shortcuts:
        if s.suspicious:
            said.append(
                f"{s.measure} alone tells '{s.finding}' from the rest with AUROC {s.auroc:.2f} "
                f"({'higher' if s.higher else 'lower'} in it): a shortcut that a network can take"
            )
    rows = found.catalog.radiographs
    brightest = np.delete(found.thumbnails.max(axis=(1, 2), initial=0), list(found.unreadable))
    if dark := int(np.sum(brightest < DARK)):
        said.append(
            f"{dark} images are all but black, no grey level of {DARK} of 255 or above: 12 bits in "
            "files of 16, or blank?"
        )
    count = len(found.near)
    if count:
        said.append(f"{count} pairs of images look the same and are not the same file")
    if torn := sum(rows[a].split != rows[b].split for a, b in found.near):
        said.append(f"{torn} of these pairs stand in two splits: what is tested was trained on")
    if torn := sum(contradict({rows[a].finding, rows[b].finding}) for a, b in found.near):
        said.append(f"{torn} of these pairs stand under two labels")
    return said


def _size(path: str) -> tuple[float, float]:
    """Width and height from the header of a file; NaN where it has none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return float(image.width), float(image.height)
    # ValueError for a text in a PNG that is larger than Pillow likes: of no interest here.
    except (OSError, ValueError, Image.DecompressionBombError):
        return float("nan"), float("nan")
