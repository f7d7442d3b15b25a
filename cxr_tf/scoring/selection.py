"""Which images of a folder an exported model is scored on."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from cxr_tf.config import Evaluate
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, decoding, splits
from cxr_tf.data import loading as data_loading
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.errors import UserError
from cxr_tf.scoring.groups import shortcuts_of, with_groups
from cxr_tf.serving import loading

log = logging.getLogger(__name__)


OTHER_DATA = (
    "the classifier was trained on other data, or on other splits of them: what is test here it "
    "may have seen"
)


def open_subset(
    settings: Evaluate, served: loading.ServedModel, task: str, classes: tuple[str, ...]
) -> ImageDataset:
    """The images to score a SavedModel on, decoded at its size for the figures.

    A folder without split folders is scored whole, one with them as it is divided; unless it is the
    one that the model was trained on: then it is divided as it was for that.
    """
    catalog = data_loading.open_catalog(settings.data, seed=settings.seed, resplit=False, task=task)
    card = served.card
    trained_on = with_training_splits(catalog, card, skip=settings.skip_unreadable)
    if trained_on is not None:
        if trained_on.notes != catalog.notes:
            log.info("  the model was trained on these images: divided as they were then")
        catalog = trained_on
    if settings.split != "all" and any(r.split for r in catalog.radiographs):
        catalog = catalog.take(catalog.rows(settings.split))
        if not len(catalog):
            raise UserError(f"{settings.data} has no {settings.split} split; see --split")
    training_digests = served.training_digests()
    if seen := sum(r.digest in training_digests for r in catalog.radiographs):
        note = f"the model was trained on or chosen by {seen} of these: scores will be too good"
        catalog = replace(catalog, notes=(*catalog.notes, note))
    log.info(checks.describe(catalog))
    catalog, images = decode_catalog(catalog, card["image_size"], skip=settings.skip_unreadable)
    labels = catalog.labels(task, classes)
    if absent := [name for k, name in enumerate(classes) if not np.any(labels == k)]:
        log.info("  note: no image of %s: scores that need one are nan", " and ".join(absent))
    return with_groups(ImageDataset(catalog, images, labels, classes), shortcuts_of(card))


def with_training_splits(
    catalog: data_catalog.Catalog, card: dict[str, Any], *, skip: bool
) -> data_catalog.Catalog | None:
    """The catalogue with the splits that a model was trained and tested by; None for other images.

    skip: that training may have left out files that cannot be read, after it had drawn the splits.
    """
    again = splits.resolve_splits(catalog, card.get("seed", 0))
    trained = card.get("data_fingerprint")
    if again.fingerprint() != trained and skip:
        _, unreadable = decoding.load_images(again.paths, card["image_size"])
        again = again.take(np.setdiff1d(np.arange(len(again)), list(unreadable)))
    return again if again.fingerprint() == trained else None
