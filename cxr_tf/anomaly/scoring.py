"""Score an autoencoder on a split, write its predictions, and measure localisation."""

from typing import Any

import keras
import numpy as np

from cxr_tf import metrics
from cxr_tf.anomaly.perturbed_copies import VALIDATION_SEED, PredictFn, perturbed_copies
from cxr_tf.anomaly.threshold import choose_threshold
from cxr_tf.config import TrainAutoencoder
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv
from cxr_tf.models import autoencoder
from cxr_tf.models.lung_appearance import LungAppearanceModel
from cxr_tf.runs import Run
from cxr_tf.scoring.subgroups import score_subgroups


def known_scores(settings: TrainAutoencoder) -> list[str]:
    """Return the names of the model's scores; raise UserError if `--score` is not one of them."""
    known = autoencoder.scores_of(settings.model)
    if settings.score and settings.score not in known:
        raise UserError(
            f"--score {settings.score} is not available for --model {settings.model}: "
            f"choose {' or '.join(known)}"
        )
    return known


def scoring_model(
    network: keras.Model,
    appearance: LungAppearanceModel | None,
    healthy_val: np.ndarray,
    score: str,
) -> keras.Model:
    """Build the model that computes a score with a trained network; see `build_autoencoder`.

    appearance: needed for the scores `combined` and `appearance`; healthy_val: uint8 [N, S, S, 1],
    the healthy validation images.
    """
    if appearance is None or score not in ("combined", "appearance"):
        return autoencoder.build_autoencoder(network, score)
    copies = np.concatenate(perturbed_copies(healthy_val, VALIDATION_SEED))
    return autoencoder.build_combined(network, appearance, copies, score)


def score_by_subgroup(
    part: ImageDataset,
    scores: np.ndarray,
    threshold: float,
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the detection scores per subgroup; see `subgroups.score_subgroups`."""

    def table(weights: np.ndarray) -> dict[str, float]:
        return metrics.detection_scores(part.labels == 1, scores, threshold, weights)

    return score_subgroups(part, table, bootstrap_samples=bootstrap_samples, seed=seed)


def score_split(
    part: ImageDataset,
    scores: np.ndarray,
    threshold: float,
    *,
    bootstrap_samples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of one split, with `<metric>/bacterial` and `<metric>/viral` if present.

    The latter compare the images of that finding with all healthy images, at the same threshold.
    """
    findings = np.array([r.finding for r in part.catalog.radiographs])
    healthy = part.labels == 0
    subsets = {"": np.ones(len(scores), bool)}
    for finding in ("bacterial", "viral"):
        if np.any(findings == finding):
            subsets[f"/{finding}"] = healthy | (findings == finding)

    def table(weights: np.ndarray) -> dict[str, float]:
        result: dict[str, float] = {}
        for suffix, rows in subsets.items():
            values = metrics.detection_scores(
                ~healthy[rows], scores[rows], threshold, weights[rows]
            )
            # Specificity does not depend on the abnormal images.
            kept = values if not suffix else {k: values[k] for k in ("auroc", "auprc", "recall")}
            result |= {f"{metric}{suffix}": value for metric, value in kept.items()}
        if part.against is not None:
            result |= metrics.recall_against_shortcut(
                part.labels, (scores >= threshold).astype(int), part.against, part.classes, weights
            )
        return result

    result: dict[str, Any] = table(np.ones(len(scores)))
    patients = part.catalog.patients
    result["images"], result["patients"] = len(scores), len(set(patients))
    positive = scores >= threshold
    result["counts"] = metrics.classification_counts(
        part.labels, positive.astype(int), ("normal", "sick")
    )
    support = {
        f"{metric}{suffix}": count
        for suffix, rows in subsets.items()
        for metric, count in metrics.detection_support(
            ~healthy[rows], positive[rows], [patients[i] for i in np.flatnonzero(rows)]
        ).items()
    }
    result["ci95"] = metrics.intervals(
        table, patients, bootstrap_samples=bootstrap_samples, seed=seed, support=support
    )
    return result


def score_alternative(
    predict: PredictFn,
    on_val: np.ndarray,
    val: ImageDataset,
    test: ImageDataset,
    settings: TrainAutoencoder,
) -> dict[str, dict[str, Any]]:
    """Return {"val": table, "test": table} of a score that was not chosen, for comparison.

    on_val: float32 [C, N], as for `choose_threshold`.
    """
    threshold, _ = choose_threshold(val.labels == 1, on_val, settings)
    return {
        split: score_split(part, scores, threshold, bootstrap_samples=settings.bootstrap_samples)
        for split, part, scores in (
            ("val", val, on_val[0]),
            ("test", test, predict(test.images)["score"]),
        )
    }


def percentile(scores: np.ndarray, healthy_scores: np.ndarray) -> np.ndarray:
    """Return the percentile of each score among the healthy validation images: float [N]."""
    return 100.0 * np.searchsorted(healthy_scores, scores) / len(healthy_scores)


def write_predictions(
    run: Run,
    split: str,
    part: ImageDataset,
    scores: np.ndarray,
    threshold: float,
    ranks: np.ndarray,
) -> None:
    """Write `predictions-<split>.csv`.

    Its columns are path, patient, finding, label, score, percentile, predicted.
    """
    rows = zip(part.catalog.radiographs, part.labels, scores, ranks, strict=True)
    write_csv(
        run.directory / f"predictions-{split}.csv",
        ["path", "patient", "finding", "label", "score", "percentile", "predicted"],
        [
            [r.path, r.patient, r.finding, part.classes[y], f"{s:.8g}", f"{p:.1f}",
             part.classes[int(s >= threshold)]]
            for r, y, s, p in rows
        ],
    )  # fmt: skip


def localisation_scores(maps: np.ndarray, lesions: np.ndarray) -> dict[str, float]:
    """Compare maps float [N, S, S] with lesion masks bool [N, S, S], on images with a lesion.

    Returns pixel_auroc, aupro, pointing and pointing_chance (the hit rate of a random pixel); empty
    if no image has a lesion.
    """
    has = lesions.any(axis=(1, 2))
    maps, lesions = maps[has], lesions[has]
    if not len(maps):
        return {}
    return {
        "pixel_auroc": metrics.pixel_auroc(maps, lesions),
        "aupro": metrics.per_region_overlap(maps, lesions),
        "pointing": float(metrics.pointing_hits(maps, lesions).mean()),
        "pointing_chance": float(lesions.mean()),
    }


def auroc_line(tables: dict[str, Any]) -> str:
    """Format the AUROC on validation, and on test with its interval."""
    test = metrics.with_interval(tables["test"], "auroc")
    return f"AUROC on validation {tables['val']['auroc']:.3f}, on test {test}"


def result_line(split: str, scores: dict[str, Any]) -> str:
    """Format the main scores with their intervals as one line."""
    headline = ("auroc", "auprc", "accuracy", "recall", "specificity", "f1")
    return f"{split}: " + ", ".join(
        f"{m} {metrics.with_interval(scores, m, counts=True)}" for m in headline
    )
