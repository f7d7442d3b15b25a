"""`predict.py --format dicom`: write a structured report and a heatmap for each radiograph."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.config import Predict
from cxr_tf.data.image_files import find_images
from cxr_tf.data.sources import dicom, dicomweb
from cxr_tf.errors import UserError
from cxr_tf.evaluation import dicom_results
from cxr_tf.evaluation.dicom_results import Algorithm, SeriesOfStudies
from cxr_tf.evaluation.prediction_loop import ImageWriter, log_counts, predict_images
from cxr_tf.evaluation.prediction_output import (
    check_folder,
    write_table,
)
from cxr_tf.figures import overlays
from cxr_tf.files import expand_user, replace_folder, short_stem, temporary_sibling
from cxr_tf.serving.open_model import open_model
from cxr_tf.serving.prediction.batch_prediction import BatchPredictions
from cxr_tf.serving.prediction.client import PredictFn

# {signature: (the output that is overlaid on the radiograph, the meaning of its colours)}.
HEATMAPS = {
    "occlusion": ("heatmap", "Occlusion heatmap: red where covering lowers the probability"),
    "explain": ("anomaly_map", "Anomaly map: red where the image differs from a healthy one"),
}


def predict_dicom(settings: Predict) -> None:
    """Write a report and a heatmap for each DICOM image to a folder, or send them to a PACS.

    All or nothing: the folder appears only when it is complete, and nothing is sent before all
    results exist. Raises UserError like `predict`, and for an image that is not DICOM.
    """
    output = check_output(settings)
    with contextlib.ExitStack() as stack:
        images, urls = stack.enter_context(dicomweb.downloaded(settings.images))
        paths = find_images(images)
        check_images(paths)
        model = open_model(settings)
        algorithm = algorithm_of(settings)
        drawing = _drawing(model) if settings.heatmaps else None
        if output:
            folder = stack.enter_context(temporary_sibling(output))
            check_output(settings)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cxr_tf-")))
        write = report_writer(folder, paths, algorithm, drawing)
        predictions, reasons = predict_images(settings, model(settings.signature), paths, write)
        if output:
            names = [urls.get(path, path) for path in paths]
            marked = settings.on_bad_image == "nan"
            check_output(settings)
            write_table(folder / "predictions.csv", names, predictions, reasons, marked)
            replace_folder(folder, output)
        else:
            dicomweb.store(settings.output, sorted(folder.glob("*.dcm")))
    log_counts(len(paths), len(reasons), output or dicomweb.shown(settings.output))


def check_output(settings: Predict) -> Path | None:
    """Return the folder of --output, or None for a PACS; raise UserError if neither is usable."""
    if not settings.output:
        raise UserError(
            "--format dicom needs --output FOLDER or --output dicomweb://host:port/path"
        )
    if settings.signature != "serving_default":
        raise UserError("--format dicom writes predictions and heatmaps: leave out --signature")
    if dicomweb.is_dicomweb(settings.output):
        dicomweb.check_target(settings.output)
        return None
    output = expand_user(settings.output)
    if output.suffix.lower() in (".csv", ".json", ".dcm"):
        raise UserError(
            f"--output {output}: --format dicom writes a folder; choose a name without "
            f"{output.suffix}"
        )
    check_folder(output, overwrite=settings.overwrite)
    return output


def check_images(paths: list[str]) -> None:
    """Raise UserError for the first file that is not DICOM, or if highdicom is not installed."""
    dicom_results.highdicom()
    for path in paths:
        if not dicom.is_dicom(Path(path)):
            raise UserError(
                f"{path}: not a DICOM file; --format dicom takes DICOM images only, because a "
                "report refers to its source image"
            )


def algorithm_of(settings: Predict) -> Algorithm:
    """Return the name, version and operating point of the model, from its card or the flags."""
    if settings.server:
        if settings.version is None:
            raise UserError(
                "--format dicom with --server needs --version, because reports state the version "
                "of the model"
            )
        return Algorithm(settings.model, str(settings.version))
    from cxr_tf.serving import loading

    card = loading.read_card(settings.model)
    threshold = card.get("threshold") if card["kind"] == "classifier" else None
    return Algorithm(card["name"], str(card["version"]), threshold)


def _drawing(model: Callable[[str], PredictFn]) -> tuple[str, PredictFn] | None:
    """Return the heatmap signature of the model and its function, or None if it has none."""
    for signature in HEATMAPS:
        with contextlib.suppress(UserError):
            return signature, model(signature)
    return None


def report_writer(
    folder: Path, paths: list[str], algorithm: Algorithm, drawing: tuple[str, PredictFn] | None
) -> ImageWriter:
    """Return a function that writes the DICOM objects of each image into `folder`.

    drawing: the heatmap signature, and a function that calls it; None without heatmaps.
    """
    studies = SeriesOfStudies()

    def write(row: int, batch: BatchPredictions, k: int, predicted: dict[str, Any]) -> None:
        path = Path(paths[row])
        source = dicom_results.read_header(path)
        series = studies.of(source)
        stem = f"{row:05d}-{short_stem(path)}"
        capture = None
        if drawing:
            signature, draw = drawing
            output, meaning = HEATMAPS[signature]
            content = batch.contents[k]
            values = np.squeeze(draw([content])[output][0])
            capture = dicom_results.heatmap_capture(
                source,
                _drawn(content, values, _caption(predicted, meaning)),
                f"{meaning}. {dicom_results.NOTICE}",
                algorithm,
                series,
            )
            capture.save_as(folder / f"{stem}-heatmap.dcm", enforce_file_format=True)
        report = dicom_results.structured_report(source, predicted, algorithm, series, capture)
        report.save_as(folder / f"{stem}-report.dcm", enforce_file_format=True)

    return write


def _caption(prediction: dict[str, Any], meaning: str) -> list[str]:
    label = prediction.get("label")
    if label is not None:
        result = f"{label} {prediction['probabilities'][label]:.3f}"
    else:
        result = f"anomaly score {prediction['score']:.3g}, threshold {prediction['threshold']:.3g}"
    return [result, meaning, dicom_results.NOTICE]


def _drawn(content: bytes, heat: np.ndarray, caption: list[str]) -> np.ndarray:
    """Overlay the heatmap on the radiograph, with a caption: uint8 [H, W, 3]."""
    from PIL import Image

    gray = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    return overlays.with_caption(overlays.overlay(gray, heat), caption)
