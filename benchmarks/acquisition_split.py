"""Split real radiographs so that the test images are acquired differently from the training images.

    python -m benchmarks.acquisition_split --data kermany --out contradicting.csv
    python scripts/train_classifier.py --data contradicting.csv --weights FILE --image-size 64

A logistic regression on statistics of the acquisition, cross-fitted by patient, predicts the class.
Of each class, the quarter of the images that it finds least typical becomes the test split, whole
patients at a time; the other images keep their split. In training, the shortcut then agrees with
the class, and in the test split it contradicts it, on radiographs that no simulation has changed.
The test split of the data is left out, so that recipes can be compared without looking at it.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_tf import cli
from cxr_tf.data import loading
from cxr_tf.data.acquisition.statistics import STATISTICS, acquisition_statistics, mean_chest
from cxr_tf.data.dataset import decode_catalog
from cxr_tf.errors import UserError
from cxr_tf.files import write_atomically
from cxr_tf.metrics.shortcuts import AGAINST_SHARE, FOLDS

# Side at which the statistics are computed, in pixels.
SIZE = 64


@dataclass(frozen=True)
class AcquisitionSplit:
    """Data to split, and the statistics by which they are split."""

    data: str
    """Folder or list of radiographs of healthy and sick people, with splits."""
    out: Path
    """The list to write, .csv."""
    statistics: tuple[str, ...] = STATISTICS
    """Statistics of the acquisition that the regression uses."""
    seed: int = 0


def main(settings: AcquisitionSplit) -> None:
    """Write the list, and print the number of images of each split and class.

    Raises UserError if the list exists already, if a statistic is unknown, or if a class has too
    few patients.
    """
    if settings.out.exists():
        raise UserError(f"{settings.out} already exists: choose another --out")
    unknown = set(settings.statistics) - set(STATISTICS)
    if unknown:
        raise UserError(f"no statistic {min(unknown)!r}; known: {', '.join(STATISTICS)}")
    catalog = loading.open_catalog(settings.data, seed=settings.seed, task="binary")
    kept = [k for k, r in enumerate(catalog.radiographs) if r.split in ("train", "val")]
    catalog, images = decode_catalog(catalog.take(kept), SIZE, skip=False)
    labels = catalog.labels("binary")
    for label, name in enumerate(("normal", "pneumonia")):
        count = len({p for p, y in zip(catalog.patients, labels, strict=True) if y == label})
        if count < FOLDS:
            raise UserError(
                f"{settings.data}: {count} patients of class {name}, {FOLDS} are needed"
            )
    table = acquisition_statistics(images, mean_chest(images[labels == 0]))
    columns = [STATISTICS.index(name) for name in settings.statistics]
    probabilities = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")),
        table[:, columns],
        labels,
        groups=catalog.patients,
        cv=GroupKFold(FOLDS, shuffle=True, random_state=settings.seed),
        method="predict_proba",
    )
    typical = np.log(probabilities + 1e-12)[np.arange(len(labels)), labels]
    held_out = least_typical(labels, catalog.patients, typical, AGAINST_SHARE)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "patient", "split"])
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for radiograph in catalog.radiographs:
        split = "test" if radiograph.patient in held_out else radiograph.split
        path = Path(radiograph.path).resolve()
        writer.writerow([path, radiograph.finding, radiograph.patient, split])
        counts[split, radiograph.finding] += 1
    write_atomically(settings.out, lambda p: p.write_text(text.getvalue(), encoding="utf-8"))
    for (split, finding), count in sorted(counts.items()):
        print(f"{split:6} {finding:10} {count}")


def least_typical(
    labels: np.ndarray, patients: Sequence[str], typical: np.ndarray, share: float
) -> set[str]:
    """Return the patients of the least typical images of each class.

    labels: int [N]. typical: float [N], how typical of its class each image is; the mean over the
    images of a patient counts. Patients are added until they have `share` of the class's images.
    """
    chosen: set[str] = set()
    for label in np.unique(labels):
        by_patient: dict[str, list[float]] = defaultdict(list)
        for patient, value, image_label in zip(patients, typical, labels, strict=True):
            if image_label == label:
                by_patient[patient].append(float(value))
        count = 0
        for patient in sorted(by_patient, key=lambda p: float(np.mean(by_patient[p]))):
            if count >= share * (labels == label).sum():
                break
            chosen.add(patient)
            count += len(by_patient[patient])
    return chosen


if __name__ == "__main__":
    cli.run(AcquisitionSplit, main)
