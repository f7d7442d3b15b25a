"""The whole job: a trained classifier and radiographs in, heatmaps and what they are worth out.

    python scripts/explain.py --classifier logs/classifier/vgg16-binary --data chest_xray
    python scripts/explain.py --classifier logs/classifier/vgg16-binary --method all

Writes under logs/explain/<name>/:

    heatmaps/<nn>-<file>-<method>.png   the radiograph and the heatmap over it
    heatmaps-<method>.npz               heatmaps float32 [N, S, S], paths, targets, probabilities
    figures/contact_sheet.png           all of them, or the first of many
    figures/heatmaps_alone.png          the same over no radiograph but their mean
    figures/mean_by_class.png           mean heatmap by class, with the share outside of the chest
    metrics.json                        one table by method; last
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import evaluation, figures, serving, store
from cxr_tf.client import read_image
from cxr_tf.data import catalog as catalogs
from cxr_tf.data import pipeline, reading
from cxr_tf.errors import UserError
from cxr_tf.explain import cams, faithfulness, occlusion
from cxr_tf.models import backbones
from cxr_tf.models.network import in_float32
from cxr_tf.paths import expanded, short_stem
from cxr_tf.prediction import find_images
from cxr_tf.runs import (
    Run,
    as_name,
    atomically,
    check_name,
    open_run,
    refuse_existing,
    write_arrays,
)
from cxr_tf.settings import Explain, check_numbers

log = logging.getLogger(__name__)

# Shuffled weights, and the whole map beside a refined one, cost as much as the maps themselves.
IMAGES_OF_SANITY_CHECK = 4
IMAGES_OF_REFINEMENT_CHECK = 4

LARGEST_CONTACT_SHEET = 24

# A heatmap has its own scale. Below this one should know that its red means little.
SMALLEST_DROP = 0.01

METHODS = ("occlusion", *cams.METHODS)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier in float32, with what its run says of it."""

    name: str
    model: keras.Model
    classes: tuple[str, ...]
    task: str
    threshold: float
    settings: dict[str, Any]
    data_fingerprint: str

    @property
    def size(self) -> int:
        """Side of its images in pixels."""
        return int(self.model.input_shape[1])


@dataclass(frozen=True)
class Radiographs:
    """What is explained. labels: int64 [N], -1 where not known; masks: of lesions, where known.

    images: uint8 [N, S, S, 1]. masks: bool [N, S, S].
    """

    catalog: catalogs.Catalog
    images: np.ndarray
    labels: np.ndarray
    findings: tuple[str, ...]
    masks: np.ndarray | None

    @property
    def pixels(self) -> np.ndarray:
        """As the model takes them: float32 [N, S, S, 3] in 0..255."""
        return np.repeat(self.images, 3, axis=3).astype(np.float32)


@dataclass(frozen=True)
class Explained:
    """Heatmaps of one method, float32 [N, S, S], and how long they took."""

    method: str
    maps: np.ndarray
    seconds: float
    refinement: dict[str, float]


def explain(settings: Explain) -> Run:
    """The whole job; returns the finished run. Everything lands under its directory.

    Raises UserError on a user's mistake, before anything is written.
    """
    check(settings)
    keras.utils.set_random_seed(settings.seed)
    classifier = open_classifier(settings.classifier)
    asked = [settings.method.replace("+", "p")]
    if settings.images:
        asked.append("images")
    elif settings.data and settings.data != classifier.settings["data"]:
        asked.append(Path(settings.data).resolve().stem)
    asked += [settings.split] if settings.split != "test" else []
    asked += [settings.target] if settings.target != "predicted" else []
    default_name = as_name("-".join([classifier.name, *asked]))
    settings = replace(
        settings,
        data=settings.data or ("" if settings.images else classifier.settings["data"]),
        name=settings.name or default_name,
    )
    check_name(settings.name)
    refuse_existing(settings.logs, "explain", settings.name, settings)
    grid = occlusion.make_grid(classifier.size, settings.patch, settings.stride)
    settings = replace(settings, patch=grid.patch, stride=grid.stride)
    if settings.target not in ("predicted", *classifier.classes):
        raise UserError(
            f"unknown class '{settings.target}' for --target; this classifier knows "
            f"{', '.join(classifier.classes)}, or predicted"
        )

    # ------------------------------------------------------------------ radiographs
    shown = load(settings, classifier)
    pixels, count = shown.pixels, len(shown.catalog)
    probabilities = np.concatenate(
        [classifier.model(pixels[k : k + 32], training=False) for k in range(0, count, 32)]
    )
    predicted = serving.decide(tf.constant(probabilities), classifier.threshold).numpy()
    targets = predicted
    if settings.target != "predicted":
        targets = np.full(count, classifier.classes.index(settings.target))
    run = open_run(settings.logs, "explain", settings.name, settings, shown.catalog)
    writer = run.writer()
    methods = METHODS if settings.method == "all" else (settings.method,)

    # ------------------------------------------------------------------ heatmaps
    explained = {}
    for method in methods:
        maker = maker_of(method, classifier, grid, settings)
        started = time.perf_counter()
        maps, refinement = maker(pixels, targets)
        seconds = time.perf_counter() - started
        explained[method] = Explained(method, maps, seconds, refinement)
        log.info("  %s: %d heatmaps in %.1f s", method, count, seconds)
        if refinement:
            log.info("    %s", _refinement_line(refinement))
        still = int(np.sum(np.abs(maps).max((1, 2)) < SMALLEST_DROP))
        if method == "occlusion" and settings.drop == "probability" and still:
            log.info(
                "    in %d of %d radiographs no patch moves the probability by %g: their maps are "
                "of small differences; --drop logit shows more of them",
                *(still, count, SMALLEST_DROP),
            )

    # ------------------------------------------------------------------ how good they are
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

    # ------------------------------------------------------------------ what is drawn
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
            heading=_heading(settings, classifier, shown.catalog),
        ),
        writer,
    )
    run.write_figure(
        "heatmaps_alone",
        figures.heatmaps_alone(
            shown.images.mean(axis=0),
            [(m, explained[m].maps[first]) for m in methods],
            [titles[k] for k in first],
            heading=f"{_heading(settings, classifier, shown.catalog)}, over their mean",
        ),
        writer,
    )
    called = shown.labels if (shown.labels >= 0).all() else predicted
    of_classes = "true class" if (shown.labels >= 0).all() else "predicted class"
    run.write_figure(
        "mean_by_class",
        figures.mean_heatmaps(
            shown.images,
            [(m, explained[m].maps) for m in methods],
            called,
            classifier.classes,
            faithfulness.outside_chest(classifier.size),
            heading=f"mean heatmap by {of_classes}; outlined: outside of the chest",
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
            "correct": int(np.sum(shown.labels == predicted))
            if (shown.labels >= 0).all()
            else None,
            "is_phantom": shown.catalog.is_phantom,
        }
    )
    for line in table_lines(table):
        log.info(line)
    log.info("run:         %s", run.directory)
    return run


# ---------------------------------------------------------------------- what is given


def check(settings: Explain) -> None:
    """Raises UserError for a number out of its range, naming the flag."""
    check_numbers(settings)
    if not 0 <= settings.refine < 1:
        raise UserError(f"--refine must be a share from 0 to below 1, not {settings.refine}")
    if settings.images and settings.data:
        raise UserError("give --images or --data, not both")


def open_classifier(folder: str) -> Classifier:
    """A classifier from its run's folder, in float32; UserError where there is none."""
    run = Run(expanded(folder))
    if not (run.directory / "config.json").exists():
        if (run.directory / "saved_model.pb").exists() or store.versions(run.directory):
            raise UserError(
                f"{folder} is a SavedModel: name the run's folder, logs/classifier/<name>; the "
                "SavedModel itself explains by its signature occlusion (predict.py --signature)"
            )
        raise UserError(f"{folder} is no run of a classifier (expected logs/classifier/<name>)")
    if run.config()["job"] != "classifier":
        raise UserError(f"{folder} is the run of another job, not of a classifier")
    if not run.finished:
        raise UserError(f"the run {folder} is not finished: go on with it by --resume first")
    path = run.directory / "model.keras"
    if not path.exists():
        raise UserError(f"{folder} lacks model.keras: train it again")
    model = backbones.load_keras(path)
    facts = run.metrics()["model"]
    return Classifier(
        name=run.directory.resolve().name,
        model=in_float32(model),
        classes=tuple(facts["classes"]),
        task=facts["task"],
        threshold=float(facts["threshold"]),
        settings=run.config()["settings"],
        data_fingerprint=run.config()["data_fingerprint"],
    )


def load(settings: Explain, classifier: Classifier) -> Radiographs:
    """The radiographs to explain, decoded; UserError where there are none or one is broken."""
    if settings.images:
        catalog = catalog_of_images(find_images(settings.images))
        labels = np.full(len(catalog), -1)
    else:
        seed = classifier.settings.get("seed", 0)
        given = catalogs.open_catalog(settings.data, resplit=False, task=classifier.task)
        known = {
            "seed": seed,
            "data_fingerprint": classifier.data_fingerprint,
            "image_size": classifier.size,
        }
        trained_on = evaluation.as_trained_on(given, known, skip=settings.skip_unreadable)
        catalog = catalogs.settle_splits(given, seed) if trained_on is None else trained_on
        log.info(catalogs.describe(catalog))
        if trained_on is None:
            log.info("  note: %s", evaluation.OTHER_DATA)
        if settings.split != "all":
            catalog = catalog.take(catalog.rows(settings.split))
        if not len(catalog):
            raise UserError(f"{settings.data} has no {settings.split} split; see --split")
        labels = catalog.labels(classifier.task, classifier.classes)
        rows = draw(labels, [r.finding for r in catalog.radiographs], settings)
        catalog, labels = catalog.take(rows), labels[rows]
    images, unreadable = decode(catalog.paths, classifier.size)
    keep = np.setdiff1d(np.arange(len(catalog)), list(unreadable))
    catalog, images = evaluation.leave_out_unreadable(
        catalog, images, unreadable, skip=settings.skip_unreadable
    )
    return Radiographs(
        catalog,
        images,
        labels[keep],
        tuple(r.finding for r in catalog.radiographs),
        evaluation.lesion_masks(catalog, classifier.size),
    )


def decode(paths: list[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """As `pipeline.load_images`, and DICOM too, which is turned to PNG in memory."""
    from cxr_tf.data import dicom

    images, unreadable = pipeline.load_images(paths, size)
    for row in list(unreadable):
        if dicom.is_dicom(Path(paths[row])):
            try:
                encoded = tf.constant(read_image(paths[row]))
            except OSError as error:
                unreadable[row] = error.strerror or "cannot be read"
                continue
            except UserError as error:
                unreadable[row] = str(error).removeprefix(f"{paths[row]}: ")
                continue
            images[row] = pipeline.decode_radiograph(encoded, size)
            del unreadable[row]
    return images, unreadable


def catalog_of_images(paths: list[str]) -> catalogs.Catalog:
    """Files of which nothing is known, as a catalogue."""
    rows = []
    for path in paths:
        digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
        patient = reading.patient_of(Path(path), Path(path).parent)
        rows.append(catalogs.Radiograph(path, "", patient, "", digest))
    return catalogs.Catalog("images", tuple(rows), ())


def draw(labels: np.ndarray, findings: Sequence[str], settings: Explain) -> np.ndarray:
    """Rows to explain, in order: as many of each class, and within a class of each finding."""
    if not settings.count or settings.count >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(settings.seed)
    # Dealt in turns: first by class, within it by finding, within that at random.
    decks: dict[int, list[list[int]]] = {}
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        named = np.array(findings)[own]
        decks[label] = [rng.permutation(own[named == f]).tolist() for f in np.unique(named)]
    drawn: list[int] = []
    turn = 0
    while len(drawn) < settings.count:
        for piles in decks.values():
            left = [pile for pile in piles if pile]
            if left and len(drawn) < settings.count:
                # The fullest would take all; the pile whose turn it is keeps findings even.
                drawn.append(left[turn % len(left)].pop())
        turn += 1
    return np.array(sorted(drawn), np.int64)


# ---------------------------------------------------------------------- heatmaps

Maker = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, dict[str, float]]]


def maker_of(method: str, classifier: Classifier, grid: occlusion.Grid, settings: Explain) -> Maker:
    """A function of images [N, S, S, 3] and targets int [N] for maps [N, S, S] by a method."""
    if method != "occlusion":
        return lambda images, targets: (
            cams.class_activation_maps(
                classifier.model, images, targets, method, seed=settings.seed, batch_size=32
            ),
            {},
        )
    occluder = occlusion.make_occluder(classifier.model, grid, batch_size=settings.batch_size)
    if occluder.plan:
        log.info(
            "  occlusion: %d patches; %.0f %% of the multiplications suffice",
            *(grid.count, 100 * occluder.plan.share),
        )
    function = occlusion.compiled(occluder)
    fill, kind, seed = settings.fill, settings.drop, settings.seed
    opaque = occlusion.is_opacity(classifier.classes)

    def make(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        covers = occlusion.cover_images(images, fill, grid.patch, opaque=opaque[targets], seed=seed)
        if settings.refine:
            return refined_maps(function, grid, images, covers, targets, kind, settings.refine)
        return full_maps(function, grid, images, covers, targets, kind), {}

    return make


def full_maps(
    function: Callable[..., Any],
    grid: occlusion.Grid,
    images: np.ndarray,
    covers: np.ndarray,
    targets: np.ndarray,
    kind: str,
) -> np.ndarray:
    """Occlusion maps [N, S, S] with all patches computed."""
    found = []
    for rows in evaluation_rows(len(images)):
        plain, covered = function(images[rows], covers[rows], occlusion.all_places(grid))
        drops = occlusion.drop(plain, covered, targets[rows], kind)
        found.append(occlusion.heatmaps(grid, drops).numpy())
    return np.concatenate(found)


def refined_maps(
    function: Callable[..., Any],
    grid: occlusion.Grid,
    images: np.ndarray,
    covers: np.ndarray,
    targets: np.ndarray,
    kind: str,
    share: float,
) -> tuple[np.ndarray, dict[str, float]]:
    """Occlusion maps from coarse to fine, and their error on the first images.

    Drops of patches that are not computed are interpolated between the coarse ones. The error is
    the largest difference to the full map, as a share of the full map's largest absolute value,
    and the rank correlation; each the mean over images.
    """
    coarse = occlusion.coarse_places(grid)
    found, computed = [], []
    for k in range(len(images)):
        one = slice(k, k + 1)

        def drops_at(places: np.ndarray, one: slice = one) -> np.ndarray:
            plain, covered = function(images[one], covers[one], places)
            return occlusion.drop(plain, covered, targets[one], kind).numpy()[0]

        known = drops_at(coarse)
        fine = occlusion.places_to_refine(grid, known, share)
        drops = occlusion.interpolate(grid, known)
        drops[coarse] = known
        if len(fine):
            drops[fine] = drops_at(fine)
        found.append(occlusion.heatmaps(grid, drops[None]).numpy())
        computed.append(len(coarse) + len(fine))
    maps = np.concatenate(found)
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
    """Blocks of images, so that a large split is not copied to the device at once."""
    return [slice(k, min(k + block, count)) for k in range(0, count, block)]


def unit_of(method: str, kind: str) -> str:
    """What the colour bar of a method says."""
    if method != "occlusion":
        return "relative heat"
    return "drop of probability" if kind == "probability" else "drop of log odds"


# ---------------------------------------------------------------------- how good they are


def measure(
    method: str,
    explained: Explained,
    shown: Radiographs,
    classifier: Classifier,
    predicted: np.ndarray,
    targets: np.ndarray,
    grid: occlusion.Grid,
    settings: Explain,
) -> dict[str, Any]:
    """The row of a method in the table of `metrics.json`."""
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
        own = [faithfulness.share_inside(m, outside) for m in maps[shown.labels == k]]
        if own:
            row[f"outside_chest/{name}"] = _mean(own)
    if shown.masks is not None:
        right = np.flatnonzero((predicted == shown.labels) & shown.masks.any((1, 2)))
        # What is explained must be the class that the lesion stands for.
        right = right[targets[right] == shown.labels[right]]
        row["phantoms"] = len(right)
        if len(right):
            tolerance = float(grid.stride)
            pairs = [(maps[k], shown.masks[k]) for k in right]
            for name, allowed in (("", tolerance), ("_exact", 0.0)):
                hits = [float(faithfulness.points_into(*pair, allowed)) for pair in pairs]
                row[f"pointing_game{name}"] = _mean(hits)
            row["pointing_tolerance_pixels"] = tolerance
            row["inside_lesion"] = _mean([faithfulness.share_inside(*pair) for pair in pairs])
            row["lesion_area"] = float(shown.masks[right].mean())
    if settings.faithfulness or settings.method == "all":
        areas = faithfulness.insertion_deletion(classifier.model)
        inserted, deleted = areas(shown.pixels, maps, targets)
        row["insertion"], row["deletion"] = float(inserted.mean()), float(deleted.mean())
        if method != "random":
            few = spread_out(shown, IMAGES_OF_SANITY_CHECK)
            # Without refinement: the check is of the method, not of its approximation.
            maker = maker_of(method, classifier, grid, replace(settings, refine=0.0))
            pixels, chosen = shown.pixels[few], targets[few]
            found = faithfulness.sensitivity_to_weights(
                classifier.model, lambda: maker(pixels, chosen)[0], maker(pixels, chosen)[0]
            )
            row |= {f"shuffled_{k}": v for k, v in found.items()}
    return row


def table_lines(table: dict[str, dict[str, Any]]) -> list[str]:
    """The table for the screen: a row a method, the columns that there are."""
    columns = {
        "insertion": "insertion",
        "deletion": "deletion",
        "shuffled_last_layer": "last shuffled",
        "shuffled_all_layers": "all shuffled",
        "pointing_game": "pointing game",
        "pointing_game_exact": "exact",
        "inside_lesion": "inside lesion",
        "outside_chest": "outside chest",
        "seconds_per_image": "s an image",
    }
    shown = [c for c in columns if any(c in row for row in table.values())]
    lines = [f"  {'method':<12}" + "".join(f"{columns[c]:>15}" for c in shown)]
    for method, row in table.items():
        cells = [f"{row[c]:.3f}" if c in row else "" for c in shown]
        lines.append(f"  {method:<12}" + "".join(f"{cell:>15}" for cell in cells))
    first = next(iter(table.values()))
    said = f"even heat would be outside of the chest by {first['outside_chest_area']:.3f}"
    if "lesion_area" in first:
        said += (
            f", inside the lesion by {first['lesion_area']:.3f}; pointing game within "
            f"{first['pointing_tolerance_pixels']:.0f} pixels on {first['phantoms']} correctly "
            "classified phantoms"
        )
    return [*lines, f"  {said}"]


def _refinement_line(refinement: dict[str, float]) -> str:
    return (
        f"{refinement['computed_share']:.0%} of the patches computed; against the full map of "
        f"{refinement['images']:.0f} images: largest error {refinement['largest_error']:.1%} of "
        f"the peak, rank correlation {refinement['rank_correlation']:.3f}"
    )


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


# ---------------------------------------------------------------------- what is written


def describe(
    shown: Radiographs,
    classifier: Classifier,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
) -> list[str]:
    """A title for each radiograph: finding, prediction, and the explained class if another."""
    titles = []
    for k, finding in enumerate(shown.findings):
        called = classifier.classes[predicted[k]]
        title = f"true: {finding}\n" if finding else f"{Path(shown.catalog.paths[k]).name[:28]}\n"
        title += f"predicted: {called} {probabilities[k, predicted[k]]:.3f}"
        if targets[k] != predicted[k]:
            target = classifier.classes[targets[k]]
            title += f"\nexplained: {target} {probabilities[k, targets[k]]:.3f}"
        titles.append(title)
    return titles


def spread_out(shown: Radiographs, count: int) -> np.ndarray:
    """At most `count` rows, evenly over the catalogue, which is in the order of the classes."""
    order = np.argsort(shown.labels, kind="stable")
    where = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order[where]


def write_heatmaps(
    run: Run,
    writer: tf.summary.SummaryWriter,
    shown: Radiographs,
    explained: dict[str, Explained],
    titles: list[str],
    units: dict[str, str],
) -> None:
    """`heatmaps/<nn>-<file>-<method>.png`, and the same pictures in TensorBoard."""
    from matplotlib import pyplot as plt

    folder = run.directory / "heatmaps"
    folder.mkdir(exist_ok=True)
    digits = len(str(max(len(titles) - 1, 1)))
    for k, title in enumerate(titles):
        stem = f"{k:0{digits}d}-{short_stem(Path(shown.catalog.paths[k]))}"
        for method, e in explained.items():
            figure = figures.heatmap_overlay(shown.images[k], e.maps[k], title, units[method])
            path = folder / f"{stem}-{method.replace('+', 'p')}.png"
            atomically(path, lambda p, f=figure: f.savefig(p, dpi=110, format="png"))  # type: ignore[misc]
            plt.close(figure)
            if k < LARGEST_CONTACT_SHEET:
                drawn = tf.io.decode_png(path.read_bytes(), channels=3)[None]
                with writer.as_default(step=0):
                    tf.summary.image(f"{method}/{stem}", drawn)


def write_maps(
    run: Run,
    method: str,
    explained: Explained,
    shown: Radiographs,
    classifier: Classifier,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
) -> None:
    """`heatmaps-<method>.npz`: what the pictures were drawn from."""
    write_arrays(
        run.directory / f"heatmaps-{method.replace('+', 'p')}.npz",
        {
            "heatmaps": explained.maps,
            "paths": np.array(shown.catalog.paths),
            "findings": np.array(shown.findings),
            "classes": np.array(classifier.classes),
            "probabilities": probabilities,
            "predicted": predicted,
            "targets": targets,
        },
        compressed=True,
    )


def _heading(settings: Explain, classifier: Classifier, catalog: catalogs.Catalog) -> str:
    of_what = "phantoms, not radiographs of people" if catalog.is_phantom else "radiographs"
    said = f"{classifier.name} on {of_what}"
    if settings.method in ("occlusion", "all"):
        said += (
            f"; occlusion: patch {settings.patch}, stride {settings.stride}, fill {settings.fill}"
        )
    return said
