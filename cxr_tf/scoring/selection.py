"""Select the images of a folder on which an exported model is scored."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from cxr_tf.config import Evaluate
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, decoding, splits
from cxr_tf.data import loading as data_loading
from cxr_tf.data.acquisition import audit
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.errors import UserError
from cxr_tf.scoring.groups import shortcuts_of, with_groups
from cxr_tf.serving import loading

log = logging.getLogger(__name__)


OTHER_DATA = (
    "the classifier was trained on different data, or with different splits: test images here may "
    "be among its training images"
)


def open_subset(
    settings: Evaluate, served: loading.ServedModel, task: str, classes: tuple[str, ...]
) -> ImageDataset:
    """Return the images on which to score a SavedModel, decoded at its image size for the figures.

    Without split folders, all images of a folder are scored; with them, those of `settings.split`.
    If the model was trained on the same data, they get the splits of its training.
    """
    catalog = data_loading.open_catalog(settings.data, seed=settings.seed, resplit=False, task=task)
    card = served.card
    trained_on = with_training_splits(catalog, card, skip=settings.skip_unreadable)
    if trained_on is not None:
        if trained_on.notes != catalog.notes:
            log.info("  the model was trained on these images: the splits of its training are used")
        catalog = trained_on
    if settings.split != "all" and any(r.split for r in catalog.radiographs):
        catalog = catalog.take(catalog.rows(settings.split))
        if not len(catalog):
            raise UserError(
                f"{settings.data} has no {settings.split} split: choose another --split"
            )
    training_digests = served.training_digests()
    if seen := sum(r.digest in training_digests for r in catalog.radiographs):
        note = (
            f"{seen} of these images {'was' if seen == 1 else 'were'} used in training or "
            "validation: scores are too optimistic"
        )
        catalog = replace(catalog, notes=(*catalog.notes, note))
    log.info(checks.describe(catalog))
    catalog, images = decode_catalog(catalog, card["image_size"], skip=settings.skip_unreadable)
    labels = catalog.labels(task, classes)
    if absent := [name for k, name in enumerate(classes) if not np.any(labels == k)]:
        log.info(
            "  note: there is no image of %s; scores that need one are NaN", " or ".join(absent)
        )
    subset = audit.audited(ImageDataset(catalog, images, labels, classes))
    return with_groups(subset, shortcuts_of(card))


def with_training_splits(
    catalog: data_catalog.Catalog, card: dict[str, Any], *, skip: bool
) -> data_catalog.Catalog | None:
    """Return the catalogue with the splits of a model's training; None for different images.

    skip: whether training may have left out unreadable files after it had drawn the splits.
    """
    fingerprint = card.get("data_fingerprint")
    # Earlier versions drew splits by finding, regardless of the task.
    tasks = (card.get("task", ""), "")
    drawn = [splits.resolve_splits(catalog, card.get("seed", 0), task) for task in tasks]
    resolved = next((c for c in drawn if c.fingerprint() == fingerprint), drawn[0])
    if resolved.fingerprint() != fingerprint and skip:
        _, unreadable = decoding.load_images(resolved.paths, card["image_size"])
        resolved = resolved.take(np.setdiff1d(np.arange(len(resolved)), list(unreadable)))
    return resolved if resolved.fingerprint() == fingerprint else None
