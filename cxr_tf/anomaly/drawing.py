"""Figures of an autoencoder's results on a split."""

import numpy as np
import tensorflow as tf

from cxr_tf import figures
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.runs import Run


def draw_split(
    run: Run,
    split: str,
    part: ImageDataset,
    scores: np.ndarray,
    threshold: float,
    shown: dict[str, np.ndarray],
    outputs: dict[str, dict[str, np.ndarray]],
    writer: tf.summary.SummaryWriter,
) -> None:
    """Draw the figures of one split, as PNGs and in TensorBoard.

    shown: the rows of the example images by kind, from `examples`; outputs: the `reconstruction`
    and `anomaly_map` of these images, by kind.
    """
    sick = part.labels == 1
    if sick.any():
        # One column per class, like probabilities; the curves depend only on the order of scores.
        columns = np.stack([-scores, scores], axis=1)
        predicted = (scores >= threshold).astype(np.int64)
        for name, figure in {
            "roc": figures.roc(part.labels, columns, part.classes, threshold),
            "precision_recall": figures.precision_recall(part.labels, columns, part.classes),
            "confusion": figures.confusion(part.labels, predicted, part.classes),
        }.items():
            run.write_figure(f"{name}-{split}", figure, writer)
    findings = np.array([r.finding for r in part.catalog.radiographs])
    run.write_figure(
        f"scores-{split}", figures.score_histogram(scores, findings, threshold), writer
    )
    maps = np.concatenate([of_kind["anomaly_map"] for of_kind in outputs.values()])
    for kind, rows in shown.items():
        figure = figures.reconstructions(
            part.images[rows],
            outputs[kind]["reconstruction"].reshape(outputs[kind]["anomaly_map"].shape),
            outputs[kind]["anomaly_map"],
            [f"{findings[i]}\nscore {scores[i]:.3g}" for i in rows],
            brightest=float(np.quantile(maps, 0.999)),
        )
        run.write_figure(f"{kind}-{split}", figure, writer)


def examples(
    sick: np.ndarray, scores: np.ndarray, threshold: float, count: int = 6
) -> dict[str, np.ndarray]:
    """Return the rows of example images by kind: `typical`, `missed` and `false_alarms`.

    sick: whether an image is abnormal, bool [N]. Kinds without an image are omitted.
    """
    predicted = scores >= threshold
    healthy_rows, sick_rows = np.flatnonzero(~sick), np.flatnonzero(sick)

    def middle(rows: np.ndarray) -> np.ndarray:
        ordered = rows[np.argsort(scores[rows])]
        start = max(0, (len(ordered) - count // 2) // 2)
        return ordered[start : start + count // 2]

    missed, alarms = np.flatnonzero(sick & ~predicted), np.flatnonzero(~sick & predicted)
    examples_by_kind = {
        "typical": np.concatenate([middle(healthy_rows), middle(sick_rows)]),
        "missed": missed[np.argsort(scores[missed])][:count],
        "false_alarms": alarms[np.argsort(-scores[alarms])][:count],
    }
    return {kind: rows for kind, rows in examples_by_kind.items() if len(rows)}
