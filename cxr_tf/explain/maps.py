"""Compute the heatmaps of each method."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_tf.config import Explain
from cxr_tf.explain import cams, faithfulness
from cxr_tf.explain.inputs import Classifier
from cxr_tf.models.occlusion import occluder as occlusion_occluder

log = logging.getLogger(__name__)


IMAGES_OF_REFINEMENT_CHECK = 4

METHODS = ("occlusion", *cams.METHODS)


@dataclass(frozen=True)
class Explained:
    """Heatmaps of one method, float32 [N, S, S], and the seconds they took.

    refinement: the error of refined occlusion maps, see `refined_maps`; empty for other maps.
    """

    method: str
    maps: np.ndarray
    seconds: float
    refinement: dict[str, float]


MapFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, float]]]


def map_function(
    method: str, classifier: Classifier, grid: occlusion_occluder.Grid, settings: Explain
) -> MapFunction:
    """Return a function from images [N, S, S, 3] and targets int [N] to maps [N, S, S].

    The function also returns the error of refined maps, see `Explained`.
    """
    if method != "occlusion":
        return lambda images, targets: (
            cams.class_activation_maps(
                classifier.model, images, targets, method, seed=settings.seed, batch_size=32
            ),
            {},
        )
    occluder = occlusion_occluder.make_occluder(
        classifier.model, grid, batch_size=settings.batch_size
    )
    if occluder.plan:
        log.info(
            "  occlusion: %d patches, with %.0f %% of the multiplications of the plain method",
            *(grid.count, 100 * occluder.plan.share),
        )
    function = occlusion_occluder.compiled(occluder)
    fill, kind, seed = settings.fill, settings.drop, settings.seed
    opaque = occlusion_occluder.is_opacity(classifier.classes)

    def make(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        covers = occlusion_occluder.cover_images(
            images, fill, grid.patch, opaque=opaque[targets], seed=seed
        )
        if settings.refine:
            return refined_maps(function, grid, images, covers, targets, kind, settings.refine)
        return full_maps(function, grid, images, covers, targets, kind), {}

    return make


def full_maps(
    function: Callable[..., Any],
    grid: occlusion_occluder.Grid,
    images: np.ndarray,
    covers: np.ndarray,
    targets: np.ndarray,
    kind: str,
) -> np.ndarray:
    """Return occlusion maps [N, S, S] for which all patches are computed."""
    parts = []
    for rows in evaluation_rows(len(images)):
        plain, covered = function(images[rows], covers[rows], occlusion_occluder.all_places(grid))
        drops = occlusion_occluder.drop(plain, covered, targets[rows], kind)
        parts.append(occlusion_occluder.heatmaps(grid, drops).numpy())
    return np.concatenate(parts)


def refined_maps(
    function: Callable[..., Any],
    grid: occlusion_occluder.Grid,
    images: np.ndarray,
    covers: np.ndarray,
    targets: np.ndarray,
    kind: str,
    share: float,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return occlusion maps refined from coarse to fine, and their error on the first images.

    Drops of patches that are not computed are interpolated between the coarse patches. The error is
    given as the largest difference from the full map, relative to the largest absolute value of
    that map, and as the rank correlation with it; both are means over images.
    """
    coarse = occlusion_occluder.coarse_places(grid)
    parts, computed = [], []
    for k in range(len(images)):
        one = slice(k, k + 1)

        def drops_at(places: np.ndarray, one: slice = one) -> np.ndarray:
            plain, covered = function(images[one], covers[one], places)
            return occlusion_occluder.drop(plain, covered, targets[one], kind).numpy()[0]

        known = drops_at(coarse)
        fine = occlusion_occluder.places_to_refine(grid, known, share)
        drops = occlusion_occluder.interpolate(grid, known)
        drops[coarse] = known
        if len(fine):
            drops[fine] = drops_at(fine)
        parts.append(occlusion_occluder.heatmaps(grid, drops[None]).numpy())
        computed.append(len(coarse) + len(fine))
    maps = np.concatenate(parts)
    few = slice(0, IMAGES_OF_REFINEMENT_CHECK)
    full = full_maps(function, grid, images[few], covers[few], targets[few], kind)
    peak = np.maximum(np.abs(full).max((1, 2)), 1e-12)
    return maps, {
        "computed_share": float(np.mean(computed) / grid.count),
        "largest_error": float(np.mean(np.abs(maps[few] - full).max((1, 2)) / peak)),
        "rank_correlation": float(
            np.mean(
                [faithfulness.rank_correlation(a, b) for a, b in zip(maps[few], full, strict=True)]
            )
        ),
        "images": float(len(full)),
    }


def evaluation_rows(count: int, block: int = 16) -> list[slice]:
    """Return blocks of rows, so that a large split is not copied to the device all at once."""
    return [slice(k, min(k + block, count)) for k in range(0, count, block)]


def unit_of(method: str, kind: str) -> str:
    """Return the label of the colour bar of a method."""
    if method != "occlusion":
        return "relative heat"
    return "drop in probability" if kind == "probability" else "drop in log odds"
