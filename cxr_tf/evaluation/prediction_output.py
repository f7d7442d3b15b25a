"""Predictions as a table, JSON or pictures."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.files import write_csv, write_json
from cxr_tf.serving.batch_prediction import BatchPredictions

log = logging.getLogger(__name__)


# Signatures whose answer is a picture. One image there is the work of hundreds.
PICTURES = ("occlusion", "explain")

# Outputs that are drawn over the radiograph, and what their numbers are. Other pictures are images
# in 0..255 themselves.
HEATMAPS = {"heatmap": "fall of the probability", "anomaly_map": "anomaly"}


def check_output(settings: Predict) -> Path | None:
    """The path of --output; UserError where it cannot become what the signature gives."""
    drawn = settings.signature in PICTURES
    if not settings.output:
        if drawn or settings.signature == "embed":
            what = "a folder" if drawn else "a file"
            raise UserError(f"--signature {settings.signature} needs --output, {what}")
        return None
    output = Path(settings.output)
    if drawn and output.suffix in (".csv", ".json"):
        raise UserError(f"--output {output}: --signature {settings.signature} writes a folder")
    if not drawn and output.suffix not in (".csv", ".json"):
        raise UserError(f"--output {output}: give a name that ends in .csv or .json")
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists: choose another --output, or --overwrite")
    if drawn and output.exists() and not is_ours(output):
        raise UserError(f"{output} is no output of this script: it is not overwritten")
    if not drawn and output.is_dir():
        raise UserError(f"{output} is a folder: choose another --output")
    if not output.parent.is_dir():
        raise UserError(f"no such folder: {output.parent}")
    return output


def is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what this script writes."""
    if not folder.is_dir():
        return False
    names = [p.name for p in folder.iterdir()]
    return "predictions.csv" in names and all(
        n == "predictions.csv" or n.endswith(".png") for n in names
    )


def image_predictions(outputs: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """One image's answers in plain types: the label, {class: probability}, then what else there is.

    Pictures are left out.
    """
    values = {k: np.asarray(v[row]).tolist() for k, v in outputs.items() if v.ndim <= 2}
    told = {"label": values.pop("label")} if "label" in values else {}
    if "classes" in values and "probabilities" in values:
        classes = values.pop("classes")
        told["probabilities"] = dict(zip(classes, values.pop("probabilities"), strict=True))
    return told | dict(sorted(values.items()))


def blank(told: dict[str, Any]) -> dict[str, Any]:
    """The same fields for an image without answers: NaN for numbers, nothing for the rest."""

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: of(v) for k, v in value.items()}
        if isinstance(value, list):
            return [of(v) for v in value] if len(told) == 1 else None
        return math.nan if isinstance(value, float) else None

    return {k: of(v) for k, v in told.items()}


def cells(told: dict[str, Any]) -> dict[str, str]:
    """One image's answers as columns of a table.

    A list (an embedding) is spread over columns if it is all there is, else it is one cell of JSON.
    """
    flat: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            flat |= value
        elif isinstance(value, list) and len(told) == 1:
            flat |= {f"{name}_{k}": v for k, v in enumerate(value)}
        else:
            flat[name] = json.dumps(value) if isinstance(value, (list, bool)) else value
    return {
        k: "" if v is None else f"{v:.8g}" if isinstance(v, float) else str(v)
        for k, v in flat.items()
    }


def write_table(
    path: Path,
    paths: list[str],
    told: dict[int, dict[str, Any]],
    reasons: dict[int, str],
    marked: bool,
) -> None:
    """CSV or JSON of all images; with `marked` a field `reason`, empty for those that were read."""
    if path.suffix == ".json":
        write_json(
            path,
            [
                {"path": p, **told[row], **({"reason": reasons.get(row)} if marked else {})}
                for row, p in enumerate(paths)
            ],
        )
        return
    last = ["reason"] if marked else []
    write_csv(
        path,
        ["path", *cells(told[0]), *last],
        [
            [p, *cells(told[row]).values(), *([reasons.get(row, "")] if marked else [])]
            for row, p in enumerate(paths)
        ],
    )


def print_table(
    paths: list[str], told: dict[int, dict[str, Any]], reasons: dict[int, str], marked: bool
) -> None:
    """The same on stdout, without lists: those of a nearest-neighbours model fill the screen."""
    shown = {
        row: {k: v for k, v in values.items() if not isinstance(v, list)}
        for row, values in told.items()
    }
    template = next((shown[r] for r in shown if r not in reasons), shown[0])
    width = max(map(len, [*paths, "path"])) + 2

    def line(path: str, row: dict[str, str], reason: str) -> str:
        label = row.pop("label", None)
        text = f"{path:<{width}}" + (f"{label:<12}" if label is not None else "")
        return text + "".join(f"{v:>12}" for v in row.values()) + (f"  {reason}" if marked else "")

    log.info(line("path", {k: k for k in cells(template)}, "reason").rstrip())
    for row, path in enumerate(paths):
        values = cells(shown[row])
        for name, value in list(values.items()):
            if name != "label" and _is_number(value):
                values[name] = f"{float(value):.4f}"
        log.info(line(path, values, reasons.get(row, "")).rstrip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def draw_images(answers: BatchPredictions, k: int, stem: Path, title: str) -> None:
    """Writes the pictures among the outputs of one image as <stem>[-<output>].png."""
    import tensorflow as tf
    from matplotlib import pyplot as plt
    from PIL import Image

    from cxr_tf import figures
    from cxr_tf.data.decoding import decode_radiograph

    for name, values in answers.outputs.items():
        if values.ndim < 3:
            continue
        picture = np.squeeze(values[k])
        if name in HEATMAPS:
            # At the model's size and by its own decoder: what the model saw.
            seen = decode_radiograph(tf.constant(answers.contents[k]), len(picture)).numpy()
            figure = figures.heatmap_overlay(seen, picture, title, HEATMAPS[name])
            figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=110)
            plt.close(figure)
        else:
            pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(stem.with_name(f"{stem.name}-{name}.png"))
