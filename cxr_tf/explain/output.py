"""Write heatmaps as images and arrays."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from cxr_tf import figures
from cxr_tf.config import Explain
from cxr_tf.data import catalog as data_catalog
from cxr_tf.explain.inputs import Classifier, Radiographs
from cxr_tf.explain.maps import Explained
from cxr_tf.files import short_stem, write_arrays, write_atomically
from cxr_tf.runs import Run

LARGEST_CONTACT_SHEET = 24


def describe(
    shown: Radiographs,
    classifier: Classifier,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
) -> list[str]:
    """Return a title for each radiograph: finding, prediction, and explained class if different."""
    titles = []
    for k, finding in enumerate(shown.findings):
        label = classifier.classes[predicted[k]]
        title = f"true: {finding}\n" if finding else f"{Path(shown.catalog.paths[k]).name[:28]}\n"
        title += f"predicted: {label} {probabilities[k, predicted[k]]:.3f}"
        if targets[k] != predicted[k]:
            target = classifier.classes[targets[k]]
            title += f"\nexplained: {target} {probabilities[k, targets[k]]:.3f}"
        titles.append(title)
    return titles


def spread_out(shown: Radiographs, count: int) -> np.ndarray:
    """Return at most `count` rows, evenly spaced over the radiographs sorted by class."""
    order = np.argsort(shown.labels, kind="stable")
    positions = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order[positions]


def write_heatmaps(
    run: Run,
    writer: tf.summary.SummaryWriter,
    shown: Radiographs,
    explained: dict[str, Explained],
    titles: list[str],
    units: dict[str, str],
) -> None:
    """Write `heatmaps/<nn>-<file>-<method>.png`, and the same images to TensorBoard."""
    from matplotlib import pyplot as plt

    folder = run.directory / "heatmaps"
    folder.mkdir(exist_ok=True)
    digits = len(str(max(len(titles) - 1, 1)))
    for k, title in enumerate(titles):
        stem = f"{k:0{digits}d}-{short_stem(Path(shown.catalog.paths[k]))}"
        for method, e in explained.items():
            figure = figures.heatmap_overlay(shown.images[k], e.maps[k], title, units[method])
            path = folder / f"{stem}-{method.replace('+', 'p')}.png"
            write_atomically(path, lambda p, f=figure: f.savefig(p, dpi=110, format="png"))  # type: ignore[misc]
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
    """Write `heatmaps-<method>.npz`: the arrays from which the images are drawn."""
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


def heading(settings: Explain, classifier: Classifier, catalog: data_catalog.Catalog) -> str:
    """Return the heading of the figures: the model, the images and the method."""
    images = "phantoms, not radiographs of people" if catalog.is_phantom else "radiographs"
    text = f"{classifier.name} on {images}"
    if settings.method in ("occlusion", "all"):
        text += (
            f"; occlusion: patch {settings.patch}, stride {settings.stride}, fill {settings.fill}"
        )
    return text
