"""A checked catalogue with its decoded images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import decoding
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageDataset:
    """A checked catalogue with its decoded images: uint8 [N, S, S, 1]; labels int64 [N].

    against: bool [N], whether each image contradicts the shortcut, if that is known; see
    `metrics.shortcuts`.
    """

    catalog: data_catalog.Catalog
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    against: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "ImageDataset":
        """Return a copy of the given rows."""
        return replace(
            self,
            catalog=self.catalog.take(rows),
            images=self.images[rows],
            labels=self.labels[rows],
            against=None if self.against is None else self.against[rows],
        )

    def split(self, name: str) -> "ImageDataset":
        """Return the rows of one split, without copying images that are contiguous."""
        rows = self.catalog.rows(name)
        contiguous = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1
        where = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
        return replace(
            self,
            catalog=self.catalog.take(rows),
            images=self.images[where],
            labels=self.labels[where],
            against=None if self.against is None else self.against[where],
        )


def decode_catalog(
    catalog: data_catalog.Catalog,
    size: int,
    *,
    skip: bool,
    load: Callable[..., tuple[np.ndarray, dict[int, str]]] = decoding.load_images,
) -> tuple[data_catalog.Catalog, np.ndarray]:
    """Return the catalogue ordered by split, and its decoded images uint8 [N, size, size, 1].

    In this order, `ImageDataset.split` need not copy gigabytes. Raises UserError for a file that
    cannot be read; with `skip`, leaves such files out.
    """
    order = {split: number for number, split in enumerate(data_catalog.SPLITS)}
    splits = [order.get(r.split, len(order)) for r in catalog.radiographs]
    catalog = catalog.take(np.argsort(splits, kind="stable"))
    images, unreadable = load(catalog.paths, size)
    return drop_unreadable(catalog, images, unreadable, skip=skip)


def drop_unreadable(
    catalog: data_catalog.Catalog, images: np.ndarray, unreadable: dict[int, str], *, skip: bool
) -> tuple[data_catalog.Catalog, np.ndarray]:
    """Drop the rows that could not be decoded; raise UserError for them unless `skip`."""
    if not unreadable:
        return catalog, images
    for row, reason in unreadable.items():
        log.info("  unreadable: %s (%s)", catalog.paths[row], reason)
    if not skip:
        row, reason = next(iter(unreadable.items()))
        others = len(unreadable) - 1
        more, files = (f" and {others} more, listed above", "them") if others else ("", "the file")
        raise UserError(
            f"{catalog.paths[row]}: {reason}{more}. Fix or remove {files}, or pass "
            "--skip-unreadable"
        )
    keep = np.setdiff1d(np.arange(len(catalog)), list(unreadable))
    if not len(keep):
        raise UserError("none of the images can be read; the reasons are listed above")
    return catalog.take(keep), images[keep]


def lesion_masks(catalog: data_catalog.Catalog, size: int) -> np.ndarray | None:
    """Return the lesion masks of phantoms, bool [N, size, size].

    Returns None for real radiographs, or if a mask is missing or unreadable. The mask of the
    phantom <folder>/test/VIRAL/x.png is <folder>/masks/test/VIRAL/x.png.
    """
    if not catalog.is_phantom:
        return None
    paths = []
    for path in (Path(p).absolute() for p in catalog.paths):
        if len(path.parents) < 3:
            return None
        folder = path.parents[2]
        paths.append(str(folder / "masks" / path.relative_to(folder)))
    masks, unreadable = decoding.load_images(paths, size, masks=True)
    return None if unreadable else masks[..., 0] >= 128
