"""Write or print predictions as a table, as JSON or as images."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf import console
from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.files import short_stem, write_csv, write_json
from cxr_tf.serving.prediction.batch_prediction import BatchPredictions
from cxr_tf.serving.prediction.remarks import remarks

log = logging.getLogger(__name__)


# Minimum width of the path column on a terminal, in characters.
SHORTEST_PATH = 20

# Signatures that return images. For these, one radiograph takes as long as hundreds of predictions.
PICTURES = ("occlusion", "explain")

# Outputs that are overlaid on the radiograph, with the quantity that they show. Other image outputs
# are written unchanged, in 0..255.
HEATMAPS = {"heatmap": "drop in probability", "anomaly_map": "anomaly"}


def check_output(settings: Predict) -> Path | None:
    """Return the path of --output; raise UserError if it cannot be used."""
    drawn = settings.signature in PICTURES
    if not settings.output:
        if drawn or settings.signature == "embed":
            kind = "FOLDER" if drawn else "FILE.csv or FILE.json"
            raise UserError(f"--signature {settings.signature} needs --output {kind}")
        return None
    output = Path(settings.output)
    if drawn and output.suffix in (".csv", ".json"):
        raise UserError(
            f"--output {output}: --signature {settings.signature} writes a folder; choose a name "
            f"without {output.suffix}"
        )
    if not drawn and output.suffix not in (".csv", ".json"):
        raise UserError(f"--output {output}: give a name that ends in .csv or .json")
    if drawn:
        check_folder(output, overwrite=settings.overwrite)
        return output
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} already exists: choose another --output, or add --overwrite")
    if output.is_dir():
        raise UserError(f"{output} is a folder: choose another --output")
    if not output.parent.is_dir():
        raise UserError(f"no such folder: {output.parent}")
    return output


def check_folder(output: Path, *, overwrite: bool) -> None:
    """Raise UserError if a folder of results cannot be written."""
    if output.exists() and not overwrite:
        raise UserError(f"{output} already exists: choose another --output, or add --overwrite")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is not a folder: choose another --output")
    if output.exists() and not is_ours(output):
        raise UserError(
            f"{output} contains files that this command did not write, so it will not be "
            "overwritten: choose another --output"
        )
    if not output.parent.is_dir():
        raise UserError(f"no such folder: {output.parent}")


def is_ours(folder: Path) -> bool:
    """Return whether a folder is empty, or contains only files named like this command's.

    `predictions.csv` must be among them.
    """
    names = [p.name for p in folder.iterdir()]
    return not names or (
        "predictions.csv" in names
        and all(
            n == "predictions.csv" or n.endswith((".png", "-report.dcm", "-heatmap.dcm"))
            for n in names
        )
    )


def image_predictions(outputs: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """Return the outputs for one image in plain Python types, without image outputs.

    The order is `label`, `probabilities` as {class: probability}, then the other outputs by name.
    For a model with `is_novel` or `prediction_set`, a last entry `remarks` explains these in words.
    """
    values = {k: np.asarray(v[row]).tolist() for k, v in outputs.items() if v.ndim <= 2}
    predicted = {"label": values.pop("label")} if "label" in values else {}
    if "classes" in values and "probabilities" in values:
        classes = values.pop("classes")
        predicted["probabilities"] = dict(zip(classes, values.pop("probabilities"), strict=True))
    predicted |= dict(sorted(values.items()))
    if "is_novel" in predicted or "prediction_set" in predicted:
        predicted["remarks"] = "; ".join(remarks(predicted))
    return predicted


def blank(predicted: dict[str, Any]) -> dict[str, Any]:
    """Return the same fields without a prediction: NaN for floats, None for everything else."""

    def blank_value(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: blank_value(v) for k, v in value.items()}
        if isinstance(value, list):
            return [blank_value(v) for v in value] if len(predicted) == 1 else None
        return math.nan if isinstance(value, float) else None

    return {k: blank_value(v) for k, v in predicted.items()}


def cells(predicted: dict[str, Any]) -> dict[str, str]:
    """Return the predictions for one image as {column: cell} of a table.

    A list, such as an embedding, is spread over columns if it is the only output; otherwise it is
    one cell, as JSON.
    """
    flat: dict[str, Any] = {}
    for name, value in predicted.items():
        if isinstance(value, dict):
            flat |= value
        elif isinstance(value, list) and len(predicted) == 1:
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
    predictions: dict[int, dict[str, Any]],
    reasons: dict[int, str],
    marked: bool,
) -> None:
    """Write the predictions of all images as CSV or JSON.

    marked: add a field `reason`, which is empty for images that have a prediction.
    """
    if path.suffix == ".json":
        write_json(
            path,
            [
                {"path": p, **predictions[row], **({"reason": reasons.get(row)} if marked else {})}
                for row, p in enumerate(paths)
            ],
        )
        return
    last = ["reason"] if marked else []
    write_csv(
        path,
        ["path", *cells(predictions[0]), *last],
        [
            [p, *cells(predictions[row]).values(), *([reasons.get(row, "")] if marked else [])]
            for row, p in enumerate(paths)
        ],
    )


def print_table(
    paths: list[str],
    predictions: dict[int, dict[str, Any]],
    reasons: dict[int, str],
    marked: bool,
) -> None:
    """Print the predictions as a table, without lists such as the neighbours' paths.

    marked: add a column with the reason why an image has no prediction. On a terminal that is too
    narrow for the probabilities of all classes, only that of the label is printed.
    """
    width = console.terminal_width()
    shown = {
        row: {k: v for k, v in values.items() if not isinstance(v, list)}
        for row, values in predictions.items()
    }
    header, rows = _printed(paths, shown, reasons, marked)
    beside_path = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)][1:]
    if width and sum(beside_path) + SHORTEST_PATH > width:
        shown = {row: _of_label(values) for row, values in shown.items()}
        header, rows = _printed(paths, shown, reasons, marked)
    log.info("%s", console.table(header, rows, width=width))


def _printed(
    paths: list[str],
    predictions: dict[int, dict[str, Any]],
    reasons: dict[int, str],
    marked: bool,
) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the printed table, with numbers to four decimals."""
    template = next((predictions[r] for r in predictions if r not in reasons), predictions[0])
    header = ["path", *cells(template), *(["reason"] if marked else [])]
    rows = []
    for row, path in enumerate(paths):
        values = cells(predictions[row])
        for name, value in values.items():
            if name != "label" and _is_number(value):
                values[name] = f"{float(value):.4f}"
        rows.append([path, *values.values(), *([reasons.get(row, "")] if marked else [])])
    return header, rows


def _of_label(predicted: dict[str, Any]) -> dict[str, Any]:
    """Return the predictions with the probability of the label instead of all probabilities."""
    if "probabilities" not in predicted:
        return predicted
    rest = {k: v for k, v in predicted.items() if k not in ("label", "probabilities")}
    label = predicted["label"]
    probability = predicted["probabilities"].get(label, math.nan)
    return {"label": label, "probability": probability, **rest}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def picture_writer(
    folder: Path, paths: list[str]
) -> Callable[[int, BatchPredictions, int, dict[str, Any]], None]:
    """Return a function that writes the image outputs for one image into `folder` as PNG."""

    def write(row: int, batch: BatchPredictions, k: int, predicted: dict[str, Any]) -> None:
        file = Path(paths[row])
        title = f"{file.name}  {predicted.get('label', '')}"
        draw_images(batch, k, folder / f"{row:05d}-{short_stem(file)}", title)

    return write


def draw_images(batch: BatchPredictions, k: int, stem: Path, title: str) -> None:
    """Write the image outputs for one image as <stem>[-<output>].png."""
    import tensorflow as tf
    from matplotlib import pyplot as plt
    from PIL import Image

    from cxr_tf import figures
    from cxr_tf.data.decoding import decode_radiograph

    for name, values in batch.outputs.items():
        if values.ndim < 3:
            continue
        picture = np.squeeze(values[k])
        if name in HEATMAPS:
            # Decoded and resized like the input of the model.
            decoded = decode_radiograph(tf.constant(batch.contents[k]), len(picture)).numpy()
            figure = figures.heatmap_overlay(decoded, picture, title, HEATMAPS[name])
            figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=110)
            plt.close(figure)
        else:
            pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(stem.with_name(f"{stem.name}-{name}.png"))
