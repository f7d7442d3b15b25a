"""The shortcut audit, and recall among the images that contradict the shortcut.

    audit = audit_shortcuts(images, labels, patients, ("normal", "pneumonia"))
    audit.auroc, audit.ci95, audit.by_statistic          # of all statistics, and of each alone

    model = fit_shortcuts(train_images, train_labels, classes)
    against = against_shortcut(labels, model.probabilities(images))      # bool [N]
    recall_against_shortcut(labels, predicted, against, classes)

If a logistic regression on sixteen statistics of the acquisition separates the classes, a network
can do so too, and then fails when the acquisition differs (Geirhos et al., "Shortcut learning in
deep neural networks", 2020). How much a network relies on the shortcut shows in its recall on the
images whose statistics are least typical of their own class (worst-group evaluation, Sagawa et al.,
ICLR 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from cxr_tf.data.acquisition.statistics import (
    STATISTICS,
    acquisition_statistics,
    mean_chest,
)
from cxr_tf.metrics.classification import macro_auroc
from cxr_tf.metrics.intervals import intervals
from cxr_tf.metrics.ranking import roc_area

# Number of folds, over patients, of the cross-fitted regression.
FOLDS = 5

# The audit warns if the lower bound of its AUROC is at least this. Findings change the statistics
# too: phantoms, whose acquisition is drawn independently of the finding, reach 0.87.
WARN_AUROC = 0.92

# The share of each class that counts as contradicting the shortcut. The images that a strong
# shortcut misclassifies would be too few to measure recall on.
AGAINST_SHARE = 0.25


@dataclass(frozen=True)
class ShortcutModel:
    """A logistic regression from the acquisition statistics of an image to its class.

    chest: float [32, 32], see `mean_chest`. centre, scale: float [16], mean and standard deviation
    of each statistic over the training images.
    coefficients: float [C, 16]. intercepts: float [C].
    """

    chest: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the class probabilities of images uint8 [N, S, S, 1]: float64 [N, C]."""
        table = (acquisition_statistics(images, self.chest) - self.centre) / self.scale
        return special.softmax(table @ self.coefficients.T + self.intercepts, axis=1)

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as lists, rounded to four digits, for a model card."""
        return {k: np.round(v, 4).tolist() for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> "ShortcutModel":
        """Return the model with the parameters that `as_dict` returned."""
        return cls(**{k: np.array(v, np.float64) for k, v in numbers.items()})


@dataclass(frozen=True)
class ShortcutAudit:
    """The result of a shortcut audit: how well acquisition statistics predict the class.

    auroc: of the cross-fitted logistic regression; for more than two classes, the macro average of
    one class against the rest. ci95: its interval, bootstrapped over patients. by_statistic: AUROC
    of each statistic alone, at least 0.5, in the order of `STATISTICS`. probabilities: float
    [N, C], cross-fitted.
    """

    classes: tuple[str, ...]
    auroc: float
    ci95: tuple[float, float]
    by_statistic: dict[str, float]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def is_warning(self) -> bool:
        """Whether the statistics predict the class better than the findings alone would explain."""
        return self.ci95[0] >= WARN_AUROC

    def as_dict(self) -> dict[str, Any]:
        """Return AUROC, interval and the AUROC of each statistic, for `metrics.json`."""
        return {
            "auroc": self.auroc,
            "ci95": {"auroc": list(self.ci95)},
            **{f"auroc/{name}": area for name, area in self.by_statistic.items()},
        }

    def summary(self) -> str:
        """Return one sentence with the AUROC, its interval and the three leading statistics."""
        leading = sorted(self.by_statistic, key=lambda k: -self.by_statistic[k])[:3]
        named = ", ".join(f"{k.replace('_', ' ')} {self.by_statistic[k]:.2f}" for k in leading)
        low, high = self.ci95
        return (
            f"sixteen statistics of the acquisition predict the class with AUROC {self.auroc:.2f} "
            f"[{low:.2f}, {high:.2f}] (alone: {named})"
        )


def audit_shortcuts(
    images: np.ndarray,
    labels: np.ndarray,
    patients: Sequence[str],
    classes: tuple[str, ...],
    *,
    bootstrap_samples: int = 200,
    seed: int = 0,
) -> ShortcutAudit | None:
    """Return the audit of images uint8 [N, S, S, 1]; None if a class has too few patients."""
    from sklearn.model_selection import GroupKFold, cross_val_predict

    counts = [len({p for p, y in zip(patients, labels, strict=True) if y == k})
              for k in range(len(classes))]  # fmt: skip
    if min(counts, default=0) < FOLDS:
        return None
    table = acquisition_statistics(images, mean_chest(_healthy(images, labels, classes)))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities = cross_val_predict(
        _regression(), table, labels, groups=patients, cv=folds, method="predict_proba"
    )

    def auroc(weights: np.ndarray) -> dict[str, float]:
        return {"auroc": macro_auroc(labels, probabilities, weights)}

    whole = macro_auroc(labels, probabilities)
    interval = intervals(auroc, list(patients), bootstrap_samples=bootstrap_samples, seed=seed)
    low, high = interval.get("auroc", [whole, whole])
    return ShortcutAudit(
        classes=classes,
        auroc=whole,
        ci95=(low, high),
        by_statistic=_single_aurocs(table, labels, len(classes)),
        labels=labels,
        probabilities=probabilities,
    )


def fit_shortcuts(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> ShortcutModel | None:
    """Return the regression fitted on training images uint8 [N, S, S, 1] and labels int [N].

    Returns None if a class has no images.
    """
    if len(np.unique(labels)) < len(classes):
        return None
    chest = mean_chest(_healthy(images, labels, classes))
    pipeline = _regression().fit(acquisition_statistics(images, chest), labels)
    scaler, regression = pipeline[0], pipeline[1]
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # two classes: the difference of their logits
        coefficients = np.stack([-coefficients[0], coefficients[0]]) / 2
        intercepts = np.array([-intercepts[0], intercepts[0]]) / 2
    return ShortcutModel(chest, scaler.mean_, scaler.scale_, coefficients, intercepts)


def against_shortcut(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return which images contradict the shortcut: bool [N].

    In each class they are the quarter of the images (rounded up) to which the statistics give the
    lowest probability of that class. probabilities: float [N, C] of a `ShortcutModel`.
    """
    against = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        order = np.argsort(probabilities[rows, k], kind="stable")
        against[rows[order[: int(np.ceil(AGAINST_SHARE * len(rows)))]]] = True
    return against


def recall_against_shortcut(
    labels: np.ndarray,
    predicted: np.ndarray,
    against: np.ndarray,
    classes: tuple[str, ...],
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Return {"recall_against_shortcut/<class>", ..., "worst_group_recall"}.

    The images of a class form two groups: those that contradict the shortcut, and the others. The
    worst group is the one with the lowest recall. The recall of a group without images is NaN.
    weights [N]: how often each image counts.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    hit = (labels == predicted) * weights
    table, worst = {}, []
    for k, name in enumerate(classes):
        for group in (against, ~against):
            rows = group & (labels == k)
            total = weights[rows].sum()
            recall = float(hit[rows].sum() / total) if total else float("nan")
            worst.append(recall)
            if group is against:
                table[f"recall_against_shortcut/{name}"] = recall
    known = [r for r in worst if np.isfinite(r)]
    return {**table, "worst_group_recall": min(known) if known else float("nan")}


def group_weights(labels: np.ndarray, against: np.ndarray | None) -> np.ndarray:
    """Return weights [N] that give both groups of a class equal weight; mean 1 in each class.

    against: bool [N], the group of each image; if None, all weights are 1.
    """
    weights = np.ones(len(labels))
    if against is None:
        return weights
    for k in np.unique(labels):
        for group in (against, ~against):
            rows = group & (labels == k)
            if 0 < rows.sum() < (labels == k).sum():
                weights[rows] = (labels == k).sum() / (2 * rows.sum())
    return weights


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )


def _healthy(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Return the images of the class `normal`; all images if there is no such class."""
    if "normal" not in classes:
        return images
    return images[labels == classes.index("normal")]


def _single_aurocs(table: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Return the AUROC of each statistic for the class that it separates best from the rest."""
    best = {}
    for name, values in zip(STATISTICS, table.T, strict=True):
        areas = [roc_area(labels == k, values) for k in range(classes)]
        best[name] = float(max(max(a, 1 - a) for a in areas))
    return best
