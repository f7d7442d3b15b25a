"""Recall on the images that contradict the shortcut; see `metrics.shortcuts`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cxr_tf import metrics
from cxr_tf.data import decoding
from cxr_tf.data.acquisition import statistics
from cxr_tf.data.dataset import ImageDataset


def with_groups(part: ImageDataset, shortcuts: metrics.ShortcutModel | None) -> ImageDataset:
    """Return the dataset with the images marked that contradict the shortcut.

    Without a shortcut model, the dataset is returned unchanged.
    """
    if shortcuts is None or not len(part.labels):
        return part
    probabilities = shortcuts.probabilities(part.images)
    return replace(part, against=metrics.against_shortcut(part.labels, probabilities))


def against_of_files(
    paths: Sequence[str], labels: np.ndarray, shortcuts: metrics.ShortcutModel | None
) -> np.ndarray | None:
    """Return which files contradict the shortcut, bool [N]; None without a shortcut model."""
    if shortcuts is None or not len(labels):
        return None
    images, _ = decoding.load_images(paths, statistics.SIDE)
    return metrics.against_shortcut(labels, shortcuts.probabilities(images))


def shortcuts_of(card: dict[str, Any]) -> metrics.ShortcutModel | None:
    """Return the shortcut model in a model card; None for cards of earlier versions without one."""
    numbers = card.get("shortcut_model")
    return metrics.ShortcutModel.from_dict(numbers) if numbers else None


def group_metrics(part: ImageDataset) -> tuple[str, ...]:
    """Return the names of the group scores in the table of a split; empty without groups."""
    if part.against is None:
        return ()
    recalls = (f"recall_against_shortcut/{name}" for name in part.classes)
    return (*recalls, "worst_group_recall")


def shortcut_record(
    shortcuts: metrics.ShortcutModel | None, results: Mapping[str, Any], shown: Sequence[str]
) -> dict[str, Any]:
    """Return model card entries: the shortcut model, and the intervals of the card's metrics.

    results: {"val": table, "test": table}. shown: the metrics on the card.
    """
    intervals = {
        split: {k: v for k, v in results[split]["ci95"].items() if k in shown}
        for split in ("val", "test")
    }
    model = {} if shortcuts is None else {"shortcut_model": shortcuts.as_dict()}
    return {"metrics_ci95": intervals, **model}


def group_line(scores: dict[str, Any]) -> str:
    """Format the recalls against the shortcut and their intervals as one line of the log."""
    prefix = "recall_against_shortcut/"
    shown = [key for key in scores if key.startswith(prefix)]
    recalls = (f"{k.removeprefix(prefix)} {metrics.with_interval(scores, k)}" for k in shown)
    return "recall against the shortcut: " + ", ".join(recalls)
