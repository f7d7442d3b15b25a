"""Choose the anomaly score and its threshold on validation."""

import numpy as np

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import PERTURBED_COPIES, THRESHOLD_SEED, PredictFn
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data.dataset import ImageDataset

# The specificity if validation has no abnormal image, and therefore no ROC curve.
FALLBACK_SPECIFICITY = 0.95


def score_perturbed_copies(
    predict_fns: dict[str, PredictFn], val: ImageDataset, settings: TrainAutoencoder
) -> dict[str, np.ndarray]:
    """Score the validation images and their perturbed copies: float32 [C, N] by name of the score.

    C is 3 for Youden's point of the denoising network if validation has abnormal images; otherwise
    only the unchanged images are scored, and C is 1. The error of the plain network includes image
    noise, and that of a different scanner would dominate it.
    """
    by_rate = settings.operating_point != "youden"
    unchanged_only = settings.model == "plain" or by_rate or not (val.labels == 1).any()
    scores: dict[str, list[np.ndarray]] = {name: [] for name in predict_fns}
    for perturb in PERTURBED_COPIES[:1] if unchanged_only else PERTURBED_COPIES:
        images = perturb(val.images, THRESHOLD_SEED)
        for name, predict in predict_fns.items():
            scores[name].append(predict(images)["score"])
    return {name: np.stack(copies) for name, copies in scores.items()}


def choose_score(sick: np.ndarray, scores: dict[str, np.ndarray]) -> str:
    """Choose the score with the highest AUROC on validation; without abnormal images, the first.

    sick: whether an image is abnormal, bool [N]; scores: float32 [N] by name. AUROCs are rounded
    to three decimals before they are compared; ties go to the first.
    """
    if not sick.any():
        return next(iter(scores))
    areas = {
        name: round(metrics.detection_scores(sick, values, threshold=np.inf)["auroc"], 3)
        for name, values in scores.items()
    }
    return max(areas, key=lambda name: areas[name])


def choose_threshold(
    sick: np.ndarray, scores: np.ndarray, settings: TrainAutoencoder
) -> tuple[float, str]:
    """Choose the threshold at which an image becomes anomalous; return it and the rule in words.

    sick: whether an image is abnormal, bool [N]; scores: float32 [C, N], of the validation images,
    then of their perturbed copies. `youden` maximises Youden's J on the ROC curve of all C copies
    together; the other rules use the unchanged images. Without an abnormal image there is no ROC
    curve, and the threshold is a quantile of the healthy scores.
    """
    unchanged, rule = scores[0], settings.operating_point
    if sick.any():
        source = "on the ROC curve of the validation images"
        if rule == "youden":
            if len(scores) > 1:
                source += " and their perturbed copies (exposure, scanner)"
            sick, unchanged = np.tile(sick, len(scores)), scores.ravel()
        return metrics.operating_point(sick, unchanged, rule), f"{rule} {source}"
    name, _, specificity = rule.partition(":")
    share = float(specificity) if name == "min-specificity" else FALLBACK_SPECIFICITY
    threshold = float(np.quantile(unchanged, share, method="higher"))
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf))), (
        f"{share:.0%} of the healthy validation images score lower; validation has no abnormal "
        "image, so there is no ROC curve"
    )
