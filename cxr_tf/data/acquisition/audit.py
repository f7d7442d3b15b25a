"""Audit of a data set: near duplicates, shortcuts, margins, inverted and unreadable images.

    inspection = inspect_images(open_catalog("chest_xray"))
    for warning in warnings(inspection): ...
    data = audited(data)     # these warnings and those about splits, in data.catalog.warnings

It answers two questions that a table of counts does not. Are there copies that no hash of bytes
finds, because they were resized or recompressed? And does size, aspect or brightness alone predict
the class? A network learns such a shortcut, which fails at another hospital.
"""

import functools
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from warnings import catch_warnings, simplefilter

import numpy as np

from cxr_tf.data.catalog import Catalog, contradictory, counted, short_path
from cxr_tf.data.checks import split_warnings
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)


THUMBNAIL = 64  # pixels per side

# The perceptual hash: signs of the 16 x 16 lowest frequencies of a thumbnail relative to their
# median, without the mean (Zauner 2010, section 3.2.2, with more bits, since chests look alike). On
# the 5,232 images of Kermany's train and val, copies differ in no bit, and the closest pair of
# other images in 38 of 255; with the usual 63 bits, hundreds of unrelated pairs differ in 5 or
# fewer.
HASH_SIDE = 16

MAX_DIFFERENT_BITS = 20

# 12-bit values in a 16-bit file reach only 16 of 255.
DARK = 24

# A shortcut is reported if its AUROC is at least this, and chance is an unlikely explanation.
SHORTCUT_AUROC = 0.70

SHORTCUT_P = 0.001


# Uniform margins of at least this share of the side, on two opposite sides, are reported. Of 5,304
# radiographs, five have margins of a twentieth, and none has margins of a tenth.
MARGIN, MARGIN_TOLERANCE = 0.08, 3  # the second in grey levels

# Correlation with the mean of healthy phantoms below which an image counts as inverted. The
# smallest among 5,304 radiographs is +0.17; inverted ones have the opposite sign.
INVERTED_CORRELATION = -0.1

# Comparing all pairs of more images than this takes minutes; only prepare_data.py --check does it.
MAX_COMPARED = 20_000


@dataclass(frozen=True)
class Shortcut:
    """A measure unrelated to the lungs, and how well it separates one finding from the rest.

    `auroc` is at least 0.5; `higher`: whether the finding has the higher values. `p` is the p-value
    of the two-sided Mann-Whitney test.
    """

    measure: str
    finding: str
    auroc: float
    higher: bool
    p: float

    @property
    def suspicious(self) -> bool:
        """Whether to warn about this shortcut."""
        return self.auroc >= SHORTCUT_AUROC and self.p < SHORTCUT_P


@dataclass(frozen=True)
class Inspection:
    """A catalogue, and measurements of its images.

    thumbnails: uint8 [N, 64, 64], zero if unreadable. measures: float [N] each, NaN if
    unreadable: width, height (pixels), size (number of pixels), aspect (width / height),
    brightness (mean of 0..255). near: pairs of rows that look alike, identical files excluded.
    """

    catalog: Catalog
    thumbnails: np.ndarray
    unreadable: dict[int, str]
    measures: dict[str, np.ndarray]
    near: list[tuple[int, int]]
    shortcuts: list[Shortcut]


def audited(data: ImageDataset) -> ImageDataset:
    """Log warnings about a data set; return the data set with the warnings in its catalogue."""
    inspection = inspect_images(data.catalog, data.images)
    lines = [
        *split_warnings(data.catalog, data.labels, data.classes),
        *warnings(inspection),
    ]
    log_warnings(lines)
    return replace(data, catalog=replace(data.catalog, warnings=tuple(lines)))


def all_warnings(inspection: Inspection, task: str) -> list[str]:
    """Return `warnings`, and the warnings about splits if the task fits the data."""
    catalog = inspection.catalog
    try:
        labels = catalog.labels(task)
    except UserError:  # reported by the check of the data set
        return warnings(inspection)
    return [*split_warnings(catalog, labels, catalog.classes(task)), *warnings(inspection)]


def log_warnings(lines: Iterable[str]) -> None:
    """Log warnings, one line each."""
    for line in lines:
        log.info("  warning: %s", line)


def inspect_images(catalog: Catalog, images: np.ndarray | None = None) -> Inspection:
    """Measure every image, read with the decoder of training and serving.

    images: the decoded images uint8 [N, S, S, 1], if the caller has them.
    """
    from PIL import Image

    from cxr_tf.data.decoding import load_images

    unreadable: dict[int, str] = {}
    if images is None:
        thumbnails, unreadable = load_images(catalog.paths, THUMBNAIL)
        thumbnails = np.asarray(thumbnails)[..., 0]
    else:
        thumbnails = shrink(images, THUMBNAIL)[..., 0]
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
    compared = readable if images is None or len(readable) <= MAX_COMPARED else readable[:0]
    near = [(int(compared[a]), int(compared[b])) for a, b in near_duplicates(thumbnails[compared])]
    digests = [r.digest for r in catalog.radiographs]
    return Inspection(
        catalog=catalog,
        thumbnails=thumbnails,
        unreadable=unreadable,
        measures=measures,
        near=[(a, b) for a, b in near if digests[a] != digests[b]],
        shortcuts=shortcuts(catalog, measures),
    )


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Resize images uint8 [N, S, S, 1] to uint8 [N, size, size, 1], with antialiasing."""
    import tensorflow as tf

    result = np.empty((len(images), size, size, 1), np.uint8)
    for start in range(0, len(images), 256):
        resized = tf.image.resize(images[start : start + 256], [size, size], antialias=True)
        result[start : start + 256] = np.round(resized.numpy())
    return result


def margins(thumbnails: np.ndarray) -> np.ndarray:
    """Return the uniform margin common to two opposite sides, as a share of the side, float [N].

    thumbnails: uint8 [N, S, S]. A margin consists of rows or columns of one grey level.
    """
    images = thumbnails.astype(np.int16)
    size = images.shape[1]

    def depth(lines: np.ndarray) -> np.ndarray:
        """Count the leading rows [N, S, S] that have the grey level of the first one."""
        level = np.median(lines[:, 0], axis=1)[:, None, None]
        uniform = (np.abs(lines - level) <= MARGIN_TOLERANCE).all(axis=2)
        return np.cumprod(uniform, axis=1).sum(axis=1)

    turned = images.transpose(0, 2, 1)
    vertical = np.minimum(depth(images), depth(images[:, ::-1]))
    horizontal = np.minimum(depth(turned), depth(turned[:, ::-1]))
    return np.maximum(vertical, horizontal) / size


def chest_correlation(thumbnails: np.ndarray) -> np.ndarray:
    """Return the correlation of thumbnails uint8 [N, S, S] with the mean healthy phantom, [N]."""
    template = _mean_chest(thumbnails.shape[1]).ravel()
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat @ template / (np.linalg.norm(flat, axis=1) * np.linalg.norm(template) + 1e-6)


@functools.cache
def _mean_chest(size: int) -> np.ndarray:
    """Return the mean of healthy phantoms minus its mean grey level, float32 [size, size]."""
    from cxr_tf.data.sources.phantoms import phantom

    images = [phantom("normal", seed=0, patient=k, size=size).image for k in range(24)]
    mean = np.mean(images, axis=0, dtype=np.float32)
    return mean - mean.mean()


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Hash thumbnails uint8 [N, 64, 64] to bool [N, 255], robust to exposure and compression."""
    from scipy.fft import dctn

    spectrum = dctn(thumbnails.astype(np.float32), axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE]
    spectrum = spectrum.reshape(len(thumbnails), -1)[:, 1:]
    return spectrum > np.median(spectrum, axis=1, keepdims=True)


def near_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of rows, first < second, whose hashes differ by `MAX_DIFFERENT_BITS` at most."""
    if not len(thumbnails):
        return []
    signs = np.where(perceptual_hash(thumbnails), np.float32(1), np.float32(-1))
    # All blank images have the same hash.
    blank = thumbnails.reshape(len(thumbnails), -1).std(axis=1) < 1
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(signs), 1024):
        different = (signs.shape[1] - signs[start : start + 1024] @ signs.T) / 2
        for first, second in np.argwhere(different <= MAX_DIFFERENT_BITS) + np.array([start, 0]):
            if first < second and not (blank[first] and blank[second]):
                pairs.append((int(first), int(second)))
    return pairs


def shortcuts(catalog: Catalog, measures: dict[str, np.ndarray]) -> list[Shortcut]:
    """Return, for size, aspect and brightness, the finding that each separates best."""
    from scipy.stats import mannwhitneyu

    findings = np.array([r.finding for r in catalog.radiographs])
    best = []
    for measure in ("size", "aspect", "brightness"):
        values = measures[measure]
        candidates = []
        for finding in catalog.findings:
            known = np.isfinite(values)
            positive = values[known & (findings == finding)]
            rest = values[known & (findings != finding)]
            if not len(positive) or not len(rest):
                continue
            test = mannwhitneyu(positive, rest)
            # U over the number of pairs is the AUROC (Hanley and McNeil 1982).
            auroc = float(test.statistic) / (len(positive) * len(rest))
            p = float(test.pvalue) if np.isfinite(test.pvalue) else 1.0
            candidates.append(Shortcut(measure, finding, max(auroc, 1 - auroc), auroc > 0.5, p))
        if candidates:
            best.append(max(candidates, key=lambda s: s.auroc))
    return best


def warnings(inspection: Inspection) -> list[str]:
    """Return warnings about the data, one sentence each; none of them stops a run."""
    lines = []
    for s in inspection.shortcuts:
        if s.suspicious:
            lines.append(
                f"{s.measure} alone separates '{s.finding}' from the rest with AUROC {s.auroc:.2f} "
                f"({'higher' if s.higher else 'lower'} values): a shortcut that a network can learn"
            )
    rows = inspection.catalog.radiographs
    readable = np.setdiff1d(np.arange(len(rows)), list(inspection.unreadable))
    thumbnails = inspection.thumbnails[readable]
    if dark := int(np.sum(thumbnails.max(axis=(1, 2), initial=0) < DARK)):
        lines.append(
            f"{counted(dark, 'image is', 'images are')} almost black, without a grey level of "
            f"{DARK} or above: 12-bit values in 16-bit files, or blank?"
        )
    framed = margins(thumbnails) >= MARGIN
    if framed.any():
        lines.append(
            f"{counted(int(framed.sum()), 'image has', 'images have')} uniform margins of "
            f"{100 * MARGIN:.0f} % or more (first: "
            f"{short_path(rows[readable[framed.argmax()]].path)}): crop them"
        )
    inverted = chest_correlation(thumbnails) < INVERTED_CORRELATION
    if inverted.any():
        lines.append(
            counted(
                int(inverted.sum()),
                "image looks inverted (dark bones) or is not a frontal chest radiograph",
                "images look inverted (dark bones) or are not frontal chest radiographs",
            )
            + f" (first: {short_path(rows[readable[inverted.argmax()]].path)})"
        )
    count = len(inspection.near)
    if count:
        lines.append(
            f"{counted(count, 'pair', 'pairs')} of images look the same but are different files"
        )
    if across := sum(rows[a].split != rows[b].split for a, b in inspection.near):
        appears = counted(across, "of these pairs appears", "of these pairs appear")
        lines.append(f"{appears} in two splits: leakage")
    if conflicts := sum(
        contradictory({rows[a].finding, rows[b].finding}) for a, b in inspection.near
    ):
        appears = counted(conflicts, "of these pairs appears", "of these pairs appear")
        lines.append(f"{appears} under two labels")
    return lines


def _size(path: str) -> tuple[float, float]:
    """Return width and height from the header of a file; NaN if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return float(image.width), float(image.height)
    # ValueError for a text chunk of a PNG above Pillow's limit.
    except (OSError, ValueError, Image.DecompressionBombError):
        return float("nan"), float("nan")
