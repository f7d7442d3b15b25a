"""Figures of the autoencoder on a split."""

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
    seen: dict[str, dict[str, np.ndarray]],
    writer: tf.summary.SummaryWriter,
) -> None:
    """The figures of one split, as PNGs and in TensorBoard.

    shown: of `examples`; seen: what the model makes of each kind, a `reconstruction` and an
    `anomaly_map` of each image.
    """
    sick = part.labels == 1
    if sick.any():
        # One column for each class; of a score, only the order matters.
        columns = np.stack([-scores, scores], axis=1)
        called = (scores >= threshold).astype(np.int64)
        for name, figure in {
            "roc": figures.roc(part.labels, columns, part.classes, threshold),
            "precision_recall": figures.precision_recall(part.labels, columns, part.classes),
            "confusion": figures.confusion(part.labels, called, part.classes),
        }.items():
            run.write_figure(f"{name}-{split}", figure, writer)
    findings = np.array([r.finding for r in part.catalog.radiographs])
    run.write_figure(
        f"scores-{split}", figures.score_histogram(scores, findings, threshold), writer
    )
    maps = np.concatenate([outputs["anomaly_map"] for outputs in seen.values()])
    for kind, rows in shown.items():
        figure = figures.reconstructions(
            part.images[rows],
            seen[kind]["reconstruction"].reshape(seen[kind]["anomaly_map"].shape),
            seen[kind]["anomaly_map"],
            [f"{findings[i]}\nscore {scores[i]:.3g}" for i in rows],
            brightest=float(np.quantile(maps, 0.999)),
        )
        run.write_figure(f"{kind}-{split}", figure, writer)


def examples(
    sick: np.ndarray, scores: np.ndarray, threshold: float, count: int = 6
) -> dict[str, np.ndarray]:
    """Rows of images that are worth a look: typical ones, missed ones, and false alarms.

    A kind of which there is none is left out.
    """
    called = scores >= threshold
    healthy, ill = np.flatnonzero(~sick), np.flatnonzero(sick)

    def middle(rows: np.ndarray) -> np.ndarray:
        ordered = rows[np.argsort(scores[rows])]
        start = max(0, (len(ordered) - count // 2) // 2)
        return ordered[start : start + count // 2]

    missed, alarms = np.flatnonzero(sick & ~called), np.flatnonzero(~sick & called)
    rows = {
        "typical": np.concatenate([middle(healthy), middle(ill)]),
        "missed": missed[np.argsort(scores[missed])][:count],
        "false_alarms": alarms[np.argsort(-scores[alarms])][:count],
    }
    return {kind: chosen for kind, chosen in rows.items() if len(chosen)}
