"""Measure how faithful the heatmaps of each method are."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from cxr_tf import console, metrics
from cxr_tf.config import Explain
from cxr_tf.explain import faithfulness
from cxr_tf.explain.inputs import Classifier, Radiographs
from cxr_tf.explain.maps import Explained, map_function
from cxr_tf.explain.output import spread_out
from cxr_tf.models.occlusion import occluder

# Few, because the maps under shuffled weights cost as much as the maps themselves.
IMAGES_OF_SANITY_CHECK = 4

# Each heatmap is scaled to its own maximum: if that is below this drop, its colours mean little.
SMALLEST_DROP = 0.01


def measure(
    method: str,
    explained: Explained,
    shown: Radiographs,
    classifier: Classifier,
    predicted: np.ndarray,
    targets: np.ndarray,
    grid: occluder.Grid,
    settings: Explain,
) -> dict[str, Any]:
    """Return the measures of one method: its row in the table of `metrics.json`."""
    maps = explained.maps
    outside = faithfulness.outside_chest(classifier.size)
    row: dict[str, Any] = {
        "outside_chest": _mean([faithfulness.share_inside(m, outside) for m in maps]),
        "outside_chest_area": float(outside.mean()),
    }
    if method != "random":
        row["seconds_per_image"] = explained.seconds / len(maps)
        row |= {f"refinement/{k}": v for k, v in explained.refinement.items()}
    for k, name in enumerate(classifier.classes):
        shares = [faithfulness.share_inside(m, outside) for m in maps[shown.labels == k]]
        if shares:
            row[f"outside_chest/{name}"] = _mean(shares)
    if shown.masks is not None:
        right = np.flatnonzero((predicted == shown.labels) & shown.masks.any((1, 2)))
        # The explained class must be the class of the lesion.
        right = right[targets[right] == shown.labels[right]]
        row["phantoms"] = len(right)
        if len(right):
            tolerance = float(grid.stride)
            pairs = [(maps[k], shown.masks[k]) for k in right]
            for name, allowed in (("", tolerance), ("_exact", 0.0)):
                hits = metrics.pointing_hits(maps[right], shown.masks[right], tolerance=allowed)
                row[f"pointing_game{name}"] = float(hits.mean())
            row["pointing_tolerance_pixels"] = tolerance
            row["inside_lesion"] = _mean([faithfulness.share_inside(*pair) for pair in pairs])
            row["lesion_area"] = float(shown.masks[right].mean())
    if settings.faithfulness or settings.method == "all":
        areas = faithfulness.insertion_deletion(classifier.model)
        inserted, deleted = areas(shown.pixels, maps, targets)
        row["insertion"], row["deletion"] = float(inserted.mean()), float(deleted.mean())
        if method != "random":
            few = spread_out(shown, IMAGES_OF_SANITY_CHECK)
            # Without refinement: this checks the method, not its approximation.
            make_maps = map_function(method, classifier, grid, replace(settings, refine=0.0))
            pixels, chosen = shown.pixels[few], targets[few]
            correlations = faithfulness.sensitivity_to_weights(
                classifier.model, lambda: make_maps(pixels, chosen)[0], make_maps(pixels, chosen)[0]
            )
            row |= {f"shuffled_{k}": v for k, v in correlations.items()}
    return row


def table_lines(table: dict[str, dict[str, Any]]) -> list[str]:
    """Format the table for the log: one row per method."""
    columns = {
        "insertion": "insertion",
        "deletion": "deletion",
        "shuffled_last_layer": "last shuffled",
        "shuffled_all_layers": "all shuffled",
        "pointing_game": "pointing game",
        "pointing_game_exact": "exact",
        "inside_lesion": "inside lesion",
        "outside_chest": "outside chest",
        "seconds_per_image": "s per image",
    }
    shown = [c for c in columns if any(c in row for row in table.values())]
    rows = [
        [method, *(f"{row[c]:.3f}" if c in row else "" for c in shown)]
        for method, row in table.items()
    ]
    header = ["method", *(columns[c] for c in shown)]
    lines = console.table(header, rows, indent=2).splitlines()
    first = next(iter(table.values()))
    note = f"uniform heat: {first['outside_chest_area']:.3f} outside the chest"
    if "lesion_area" in first:
        note += (
            f", {first['lesion_area']:.3f} inside the lesion; pointing game within "
            f"{first['pointing_tolerance_pixels']:.0f} pixels on {first['phantoms']} correctly "
            "classified phantoms"
        )
    return [*lines, f"  {note}"]


def refinement_line(refinement: dict[str, float]) -> str:
    """Format the error of refined occlusion maps as one line of the log."""
    return (
        f"{refinement['computed_share']:.0%} of the patches computed; compared with the full maps "
        f"of {refinement['images']:.0f} images: largest error {refinement['largest_error']:.1%} of "
        f"the peak, rank correlation {refinement['rank_correlation']:.3f}"
    )


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")
