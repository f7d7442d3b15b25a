"""Draw heatmaps of a trained classifier's decisions, and measure how faithful they are.

    python scripts/explain.py --classifier logs/classifier/vgg16-binary --data chest_xray
    python scripts/explain.py --classifier logs/classifier/vgg16-binary --method all

Writes under logs/explain/<name>/:

    heatmaps/<nn>-<file>-<method>.png   the radiograph and the heatmap over it
    heatmaps-<method>.npz               heatmaps float32 [N, S, S], paths, targets, probabilities
    figures/contact_sheet.png           all heatmaps, or a selection if there are many
    figures/heatmaps_alone.png          the same heatmaps over the mean radiograph
    figures/mean_by_class.png           mean heatmap of each class, with the share outside the chest
    metrics.json                        one table with a row per method; written last
"""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import figures
from cxr_tf.config import Explain, check_numbers
from cxr_tf.errors import UserError
from cxr_tf.explain import faithfulness
from cxr_tf.explain.inputs import load_radiographs, open_classifier
from cxr_tf.explain.maps import METHODS, Explained, map_function, unit_of
from cxr_tf.explain.measures import SMALLEST_DROP, measure, refinement_line, table_lines
from cxr_tf.explain.output import (
    LARGEST_CONTACT_SHEET,
    describe,
    heading,
    spread_out,
    write_heatmaps,
    write_maps,
)
from cxr_tf.models.occlusion import occluder
from cxr_tf.runs import Run, check_name, open_run, reserve_run, to_run_name
from cxr_tf.serving import export

log = logging.getLogger(__name__)


def explain(settings: Explain) -> Run:
    """Explain the decisions of a classifier; return the finished run.

    Raises UserError for invalid settings or data, before anything is written.
    """
    check_settings(settings)
    keras.utils.set_random_seed(settings.seed)
    classifier = open_classifier(settings.classifier)
    parts = [settings.method.replace("+", "p")]
    if settings.images:
        parts.append("images")
    elif settings.data and settings.data != classifier.settings["data"]:
        parts.append(Path(settings.data).resolve().stem)
    parts += [settings.split] if settings.split != "test" else []
    parts += [settings.target] if settings.target != "predicted" else []
    default_name = to_run_name("-".join([classifier.name, *parts]))
    settings = replace(
        settings,
        data=settings.data or ("" if settings.images else classifier.settings["data"]),
        name=settings.name or default_name,
    )
    check_name(settings.name)
    reserve_run(settings.logs, "explain", settings.name, settings)
    grid = occluder.make_grid(classifier.size, settings.patch, settings.stride)
    settings = replace(settings, patch=grid.patch, stride=grid.stride)
    if settings.target not in ("predicted", *classifier.classes):
        raise UserError(
            f"unknown class '{settings.target}' for --target; choose "
            f"{', '.join(classifier.classes)}, or predicted"
        )

    # ------------------------------------------------------------------ radiographs
    shown = load_radiographs(settings, classifier)
    pixels, count = shown.pixels, len(shown.catalog)
    probabilities = np.concatenate(
        [classifier.model(pixels[k : k + 32], training=False) for k in range(0, count, 32)]
    )
    predicted = export.decide(tf.constant(probabilities), classifier.threshold).numpy()
    targets = predicted
    if settings.target != "predicted":
        targets = np.full(count, classifier.classes.index(settings.target))
    run = open_run(settings.logs, "explain", settings.name, settings, shown.catalog)
    writer = run.writer()
    methods = METHODS if settings.method == "all" else (settings.method,)

    # ------------------------------------------------------------------ heatmaps
    explained = {}
    for method in methods:
        make_maps = map_function(method, classifier, grid, settings)
        started = time.perf_counter()
        maps, refinement = make_maps(pixels, targets)
        seconds = time.perf_counter() - started
        explained[method] = Explained(method, maps, seconds, refinement)
        log.info("  %s: %d heatmaps in %.1f s", method, count, seconds)
        if refinement:
            log.info("    %s", refinement_line(refinement))
        nearly_flat = int(np.sum(np.abs(maps).max((1, 2)) < SMALLEST_DROP))
        if method == "occlusion" and settings.drop == "probability" and nearly_flat:
            log.info(
                "    in %d of %d radiographs no patch changes the probability by %g or more: their "
                "heatmaps show only small differences; --drop logit shows larger ones",
                *(nearly_flat, count, SMALLEST_DROP),
            )

    # ------------------------------------------------------------------ faithfulness
    table = {
        method: measure(method, e, shown, classifier, predicted, targets, grid, settings)
        for method, e in explained.items()
    }
    if settings.faithfulness or settings.method == "all":
        chance = faithfulness.random_maps(count, classifier.size, seed=settings.seed)
        table["random"] = measure(
            "random", Explained("random", chance, 0.0, {}), shown, classifier, predicted, targets,
            grid, settings,
        )  # fmt: skip

    # ------------------------------------------------------------------ figures
    titles = describe(shown, classifier, probabilities, predicted, targets)
    units = {m: unit_of(m, settings.drop) for m in methods}
    write_heatmaps(run, writer, shown, explained, titles, units)
    for method, e in explained.items():
        write_maps(run, method, e, shown, classifier, probabilities, predicted, targets)
    first = spread_out(shown, LARGEST_CONTACT_SHEET if len(methods) == 1 else 8)
    run.write_figure(
        "contact_sheet",
        figures.heatmap_sheet(
            shown.images[first],
            [(m, explained[m].maps[first]) for m in methods],
            [titles[k] for k in first],
            heading=heading(settings, classifier, shown.catalog),
        ),
        writer,
    )
    run.write_figure(
        "heatmaps_alone",
        figures.heatmaps_alone(
            shown.images.mean(axis=0),
            [(m, explained[m].maps[first]) for m in methods],
            [titles[k] for k in first],
            heading=f"{heading(settings, classifier, shown.catalog)}, over the mean radiograph",
        ),
        writer,
    )
    labelled = bool((shown.labels >= 0).all())
    grouping, group_name = (
        (shown.labels, "true class") if labelled else (predicted, "predicted class")
    )
    run.write_figure(
        "mean_by_class",
        figures.mean_heatmaps(
            shown.images,
            [(m, explained[m].maps) for m in methods],
            grouping,
            classifier.classes,
            faithfulness.outside_chest(classifier.size),
            heading=f"mean heatmap by {group_name}; dashed outline: outside the chest",
        ),
        writer,
    )
    with writer.as_default(step=0):
        for method, row in table.items():
            for metric, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    tf.summary.scalar(f"{method}/{metric}", value)
    writer.flush()
    run.write_metrics(
        {
            "methods": table,
            "model": {
                "classifier": settings.classifier,
                "classes": list(classifier.classes),
                "threshold": classifier.threshold,
            },
            "occlusion": {"patch": grid.patch, "stride": grid.stride, "patches": grid.count},
            "images": count,
            "correct": int(np.sum(shown.labels == predicted)) if labelled else None,
            "is_phantom": shown.catalog.is_phantom,
        }
    )
    for line in table_lines(table):
        log.info(line)
    log.info("run:         %s", run.directory)
    return run


def check_settings(settings: Explain) -> None:
    """Raise UserError, with the name of the flag, for an invalid number or combination."""
    check_numbers(settings)
    if not 0 <= settings.refine < 1:
        raise UserError(f"--refine must be a fraction from 0 to below 1, not {settings.refine}")
    if settings.images and settings.data:
        raise UserError("give --images or --data, not both")
