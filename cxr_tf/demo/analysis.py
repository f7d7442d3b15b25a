"""Compute the results for the images on the page; nothing here depends on Gradio.

images = [read_upload(Path("one.dcm"), "one.dcm")]
predict(model, images)
images[0].prediction                       # {"label": "pneumonia", "probabilities": {...}}
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.data.decoding import load_images
from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.demo.models import Model
from cxr_tf.errors import UserError
from cxr_tf.evaluation.prediction_output import image_predictions
from cxr_tf.figures.overlays import png
from cxr_tf.serving.prediction.batch_prediction import predict_readable, reason_of
from cxr_tf.serving.prediction.client import read_image
from cxr_tf.serving.prediction.remarks import remarks

BATCH = 8

# Limit of the page, which keeps all images in memory; predict.py has no limit.
MOST_IMAGES = 100

EXAMPLES = ("normal", "bacterial", "viral")
EXAMPLE_SEED = 6

MODEL_SEES_PHANTOMS = "The model was trained on synthetic phantoms: it cannot be used on people."


@dataclass
class Image:
    """An image and its results so far.

    content: JPEG or PNG file for the models; reason: why there is no prediction; notes: further
    warnings; prediction: outputs of the classifier as plain Python values; neighbors, anomaly:
    outputs of the other models; heat, anomaly_map: float [S, S].
    """

    name: str
    content: bytes = b""
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    prediction: dict[str, Any] = field(default_factory=dict)
    neighbors: dict[str, Any] = field(default_factory=dict)
    anomaly: dict[str, Any] = field(default_factory=dict)
    heat: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None


def read_upload(path: Path, name: str) -> Image:
    """Read an uploaded file; an error becomes its `reason`."""
    try:
        return Image(name, read_image(str(path)))
    except (UserError, OSError) as error:
        return Image(name, reason=reason_of(error, str(path)))


def example(finding: str) -> Image:
    """Return a synthetic phantom as if it had been uploaded."""
    drawn = phantom(finding, seed=EXAMPLE_SEED, patient=EXAMPLES.index(finding), size=512)
    return Image(f"phantom, {finding}", png(drawn.image))


def predict(model: Model, images: Sequence[Image]) -> None:
    """Set the `prediction` of each image, or the `reason` why the model rejects it."""
    readable = [image for image in images if image.content]
    for start in range(0, len(readable), BATCH):
        batch = readable[start : start + BATCH]
        result = predict_readable(
            model.predict, list(range(len(batch))), [image.content for image in batch], alone=True
        )
        for row, reason in result.reasons.items():
            batch[row].reason, batch[row].content = reason, b""
        for k, row in enumerate(result.rows):
            batch[row].prediction = image_predictions(result.outputs, k)
            batch[row].heat = None


def find_neighbors(model: Model, image: Image) -> None:
    """Set `neighbors`, the outputs of a nearest-neighbours model."""
    image.neighbors = image_predictions(model.predict([image.content]), 0)


def detect_anomaly(model: Model, image: Image) -> None:
    """Set `anomaly`, the outputs of an autoencoder, and `anomaly_map` if the model has one."""
    image.anomaly = image_predictions(model.predict([image.content]), 0)
    if model.draw:
        image.anomaly_map = np.squeeze(model.draw([image.content])["anomaly_map"][0])


def explain(model: Model, image: Image) -> None:
    """Set `heat`, the occlusion heatmap."""
    if model.draw:
        image.heat = np.squeeze(model.draw([image.content])["heatmap"][0])


def label_at(image: Image, threshold: float | None) -> str:
    """Return the label at an operating point.

    Without an operating point, or with more than two classes, return the label of the model.
    """
    probabilities: dict[str, float] = image.prediction["probabilities"]
    if threshold is None or len(probabilities) != 2:
        return str(image.prediction["label"])
    negative, positive = probabilities
    return positive if probabilities[positive] >= threshold else negative


def warnings_of(image: Image, model: Model, threshold: float | None = None) -> list[str]:
    """Return the warnings that accompany the prediction, as sentences."""
    warnings = list(image.notes)
    if model.card.get("data_is_phantom"):
        warnings.append(MODEL_SEES_PHANTOMS)
    warnings += [f"{text[0].upper()}{text[1:]}." for text in remarks(image.prediction)]
    if image.neighbors.get("novelty", 0) > 1:
        warnings.append("No similar case: this image is unlike all training images.")
    if "is_anomaly" in image.anomaly:
        label = label_at(image, threshold)
        if image.anomaly["is_anomaly"] and label == "normal":
            warnings.append("The anomaly detector disagrees: it classifies this image as abnormal.")
        elif not image.anomaly["is_anomaly"] and label != "normal":
            warnings.append("The anomaly detector disagrees: it classifies this image as normal.")
    return warnings


def thumbnails(paths: Sequence[str], roots: Sequence[Path], size: int = 192) -> list[Any]:
    """Return the images at these paths as uint8 [S, S], or None for missing or unreadable files.

    Relative paths are resolved against each of `roots`.
    """
    files = [next((r / p for r in roots if (r / p).is_file()), None) for p in paths]
    present = [str(file) for file in files if file]
    images, reasons = load_images(present, size) if present else (np.empty(0), {})
    shown = iter(None if row in reasons else np.squeeze(images[row]) for row in range(len(present)))
    return [next(shown) if file else None for file in files]


def table(
    images: Sequence[Image], threshold: float | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Return a header and rows: number, file, label, probabilities, and the reason of a failure."""
    predicted = next((image for image in images if image.prediction), None)
    classes = list(predicted.prediction["probabilities"]) if predicted else []
    rows = []
    for number, image in enumerate(images, 1):
        values: list[Any] = [""] * (1 + len(classes))
        if image.prediction:
            probabilities = image.prediction["probabilities"]
            values = [label_at(image, threshold), *(round(probabilities[c], 4) for c in classes)]
        rows.append([number, image.name, *values, image.reason])
    return ["#", "file", "label", *classes, "problem"], rows
