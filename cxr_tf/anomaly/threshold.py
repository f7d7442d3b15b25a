"""Choose the anomaly score and its threshold on validation."""

import numpy as np

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import PERTURBED_COPIES, THRESHOLD_SEED, PredictFn
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data.dataset import ImageDataset

# Without a sick image in validation there is no ROC curve: the specificity is fixed instead.
FALLBACK_SPECIFICITY = 0.95


def score_perturbed_copies(
    asks: dict[str, PredictFn], val: ImageDataset, settings: TrainAutoencoder
) -> dict[str, np.ndarray]:
    """Scores float32 [C, N] of validation by name, as `choose_threshold` takes them.

    C is 3 where Youden's point of a restoring network is asked for, else 1. The plain network's
    error is one of grey levels, and the noise of another scanner would be most of it.
    """
    by_rate = settings.operating_point != "youden"
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
    """Choose the threshold at or above which an image is an anomaly; also return the rule in words.

    sick: bool [N]; scores: float32 [C, N], of the validation images and then of their perturbed
    copies. `youden` is Youden's J on the ROC curve of all C copies together; the other rules take
    the images as they are. Without a sick image there is no curve, and Youden's J would sink to the
    lowest score: then the threshold is a quantile of the healthy scores.
    """
    plain, rule = scores[0], settings.operating_point
    if sick.any():
        source = "on the ROC curve of validation"
        if rule == "youden":
            if len(scores) > 1:
                source += " and its perturbed copies (another exposure, another scanner)"
            sick, plain = np.tile(sick, len(scores)), scores.ravel()
        return metrics.operating_point(sick, plain, rule), f"{rule} {source}"
    name, _, specificity = rule.partition(":")
    share = float(specificity) if name == "min-specificity" else FALLBACK_SPECIFICITY
    threshold = float(np.quantile(plain, share, method="higher"))
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf))), (
        f"{share:.0%} of the healthy validation images score lower; validation has no sick image, "
        "so there is no ROC curve"
    )
