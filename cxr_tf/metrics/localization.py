"""How well maps localise lesions."""

import numpy as np
from sklearn import metrics as sk


def pixel_auroc(maps: np.ndarray, lesions: np.ndarray) -> float:
    """AUROC of single pixels, lesion or not; maps float [N, H, W], lesions bool [N, H, W]."""
    return float(sk.roc_auc_score(lesions.ravel(), maps.ravel()))


def per_region_overlap(
    maps: np.ndarray, lesions: np.ndarray, *, most_false_alarms: float = 0.3
) -> float:
    """AUPRO: mean overlap with each connected lesion, against the false alarms, as an area of 0..1.

    maps float [N, H, W], lesions bool [N, H, W]. Bergmann et al., "The MVTec Anomaly Detection
    Dataset" (2021), section 6.2: small lesions count like large ones. The curve is integrated up to
    a share of 0.3 of lesion-free pixels called abnormal; a random map gets 0.15.
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
    alarms = np.cumsum(~lesions.ravel()[order]) / np.sum(~lesions)
    last = np.append(values[1:] != values[:-1], True)  # equal values are called together
    overlap, alarms = np.append(0.0, overlap[last]), np.append(0.0, alarms[last])
    at_limit = np.interp(most_false_alarms, alarms, overlap)
    inside = alarms < most_false_alarms
    x = np.append(alarms[inside], most_false_alarms)
    return float(np.trapezoid(np.append(overlap[inside], at_limit), x) / most_false_alarms)


def pointing_hits(maps: np.ndarray, lesions: np.ndarray, *, tolerance: float = 0.0) -> np.ndarray:
    """Play the pointing game: whether the hottest pixel of each map lies in the lesion.

    maps float [N, H, W], lesions bool [N, H, W], tolerance in pixels; returns bool [N]. Zhang et
    al., "Top-Down Neural Attention by Excitation Backprop" (IJCV 2018), who allow 15 pixels.
    """
    from scipy import ndimage

    hits = np.zeros(len(maps), bool)
    for k, (heat, lesion) in enumerate(zip(maps, lesions, strict=True)):
        distance = ndimage.distance_transform_edt(~lesion)
        hits[k] = distance[hottest_pixel(heat)] <= tolerance
    return hits


def hottest_pixel(heat: np.ndarray) -> tuple[int, int]:
    """Return row and column of the maximum of a map [H, W]; of a plateau its centre."""
    where = np.argwhere(heat >= heat.max() - 1e-6 * np.ptp(heat))
    row, column = np.round(where.mean(axis=0)).astype(int)
    return int(row), int(column)
