"""Choose the anomaly score and its threshold on validation."""

import numpy as np

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import PERTURBED_COPIES, THRESHOLD_SEED, PredictFn
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data.dataset import ImageDataset

# Without a sick image in validation nothing but the healthy ones can say where to stop.
FALLBACK_FALSE_ALARM = 0.05


def score_perturbed_copies(
    asks: dict[str, PredictFn], val: ImageDataset, settings: TrainAutoencoder
) -> dict[str, np.ndarray]:
    """Scores float32 [C, N] of validation by name, as `choose_threshold` takes them.

    C is 3 where Youden's point of a restoring network is asked for, else 1. The plain network's
    error is one of grey levels, and the noise of another scanner would be most of it.
    """
    by_rate = settings.max_false_alarm is not None or settings.min_sensitivity is not None
    alone = settings.model == "plain" or by_rate or not (val.labels == 1).any()
    found: dict[str, list[np.ndarray]] = {name: [] for name in asks}
    for change in PERTURBED_COPIES[:1] if alone else PERTURBED_COPIES:
        images = change(val.images, THRESHOLD_SEED)
        for name, ask in asks.items():
            found[name].append(ask(images)["score"])
    return {name: np.stack(scores) for name, scores in found.items()}


def choose_score(sick: np.ndarray, scores: dict[str, np.ndarray]) -> str:
    """The score of the highest AUROC on validation; without sick images there, the first.

    sick: bool [N]; scores: float32 [N] by name. To three digits, and of equals the first.
    """
    if not sick.any():
        return next(iter(scores))
    areas = {
        name: round(metrics.detection_scores(sick, own, threshold=np.inf)["auroc"], 3)
        for name, own in scores.items()
    }
    return max(areas, key=lambda name: areas[name])


def choose_threshold(
    sick: np.ndarray, scores: np.ndarray, settings: TrainAutoencoder
) -> tuple[float, str]:
    """Threshold on the score, at or above which an image is an anomaly, and the rule in words.

    sick: bool [N]; scores: float32 [C, N], of validation images as they are, then in other versions
    of them. Youden's J on the ROC curve of all, which of few images is decided by one or two, or
    what the settings ask for of the images as they are. With no sick image there is no curve, and
    Youden's J would sink to the lowest score: then a quantile of the healthy ones.
    """
    plain = scores[0]
    if sick.any():
        found = "on the ROC curve of validation"
        if settings.min_sensitivity is not None:
            rule = f"min-sensitivity:{settings.min_sensitivity}"
        elif settings.max_false_alarm is not None:
            rule = f"min-specificity:{round(1 - settings.max_false_alarm, 9)}"
        else:
            if len(scores) > 1:
                found += ", as it is, under another exposure and from another scanner"
            sick, plain, rule = np.tile(sick, len(scores)), scores.ravel(), "youden"
        return metrics.operating_point(sick, plain, rule), f"{rule} {found}"
    share = settings.max_false_alarm or FALLBACK_FALSE_ALARM
    threshold = float(np.quantile(plain, 1 - share, method="higher"))
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf))), (
        f"{1 - share:.0%} of the healthy validation images lie below; there is no sick image in "
        "validation, so no ROC curve"
    )
