"""Scores of localisation: how well maps agree with lesion masks."""

import numpy as np
from sklearn import metrics as sk


def pixel_auroc(maps: np.ndarray, lesions: np.ndarray) -> float:
    """Return the AUROC over pixels; maps float [N, H, W], lesions bool [N, H, W]."""
    return float(sk.roc_auc_score(lesions.ravel(), maps.ravel()))


def per_region_overlap(
    maps: np.ndarray, lesions: np.ndarray, *, max_false_positive_rate: float = 0.3
) -> float:
    """Return AUPRO, the area under the curve of overlap against false positive rate, in 0..1.

    maps: float [N, H, W]; lesions: bool [N, H, W]. Bergmann et al., "The MVTec Anomaly Detection
    Dataset" (2021), section 6.2: the overlap is the mean over lesions, and every connected lesion
    has the same weight. The curve is integrated up to a false positive rate of 0.3; a random map
    scores 0.15.
    """
    from scipy import ndimage

    weight = np.zeros(maps.shape, np.float64)
    regions = 0
    for mask, target in zip(lesions, weight, strict=True):
        labels, count = ndimage.label(mask)
        areas = np.bincount(labels.ravel())
        target[mask] = 1.0 / areas[labels[mask]]
        regions += count
    if not regions or lesions.all():
        return float("nan")
    order = np.argsort(-maps.ravel(), kind="stable")
    values = maps.ravel()[order]
    overlap = np.cumsum(weight.ravel()[order]) / regions
    false_positives = np.cumsum(~lesions.ravel()[order]) / np.sum(~lesions)
    last = np.append(values[1:] != values[:-1], True)  # equal values have the same threshold
    overlap, false_positives = np.append(0.0, overlap[last]), np.append(0.0, false_positives[last])
    at_limit = np.interp(max_false_positive_rate, false_positives, overlap)
    inside = false_positives < max_false_positive_rate
    x = np.append(false_positives[inside], max_false_positive_rate)
    return float(np.trapezoid(np.append(overlap[inside], at_limit), x) / max_false_positive_rate)


def pointing_hits(maps: np.ndarray, lesions: np.ndarray, *, tolerance: float = 0.0) -> np.ndarray:
    """Return whether the hottest pixel of each map is in the lesion (pointing game): bool [N].

    maps: float [N, H, W]; lesions: bool [N, H, W]; tolerance: in pixels. Zhang et al., "Top-Down
    Neural Attention by Excitation Backprop" (IJCV 2018), allow 15 pixels.
    """
    from scipy import ndimage

    hits = np.zeros(len(maps), bool)
    for k, (heat, lesion) in enumerate(zip(maps, lesions, strict=True)):
        distance = ndimage.distance_transform_edt(~lesion)
        hits[k] = distance[hottest_pixel(heat)] <= tolerance
    return hits


def hottest_pixel(heat: np.ndarray) -> tuple[int, int]:
    """Return the row and column of the maximum of a map [H, W], or of the centre of a plateau."""
    where = np.argwhere(heat >= heat.max() - 1e-6 * np.ptp(heat))
    row, column = np.round(where.mean(axis=0)).astype(int)
    return int(row), int(column)
