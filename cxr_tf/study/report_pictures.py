"""Prepare the pictures of the report: figures as data URIs, and the map of the images."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxr_tf.figures.style import class_colour
from cxr_tf.neighbors.projection import PROJECTOR, sprite
from cxr_tf.runs import Run

# Larger PNGs contain radiographs, and are a tenth of the size in a format for photographs.
LARGEST_PNG = 60_000  # bytes

QUALITY = 84

# Enough points to see the clusters, while the page stays at a few megabytes.
MOST_POINTS = 1500

THUMBNAIL = 96  # pixels

THUMBNAIL_QUALITY = 60

MAP_WIDTH, MAP_HEIGHT, MAP_BORDER = 1000, 640, 16


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def pictures(run: Run, *names: str, split: str = "") -> dict[str, Picture | None]:
    """Return figures of a run by name, with None for missing ones."""
    return {name: picture(run, f"{name}-{split}" if split else name) for name in names}


def picture(run: Run, name: str) -> Picture | None:
    """Return a run's `figures/<name>.png`, as WebP if it is large; None if it is missing."""
    path = run.directory / "figures" / f"{name}.png"
    if not path.exists():
        return None
    content, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        width, height = image.size
        if len(content) > LARGEST_PNG:
            content, kind = webp(image.convert("RGB"), QUALITY), "webp"
    return Picture(data_uri(content, kind), width, height)


def webp(image: Image.Image, quality: int) -> bytes:
    """Encode an image as WebP, which every browser since 2020 supports."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Encode the bytes of an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_map(run: Run, classes: list[str], most: int = MOST_POINTS) -> dict[str, Any] | None:
    """Return the points of the report's t-SNE map; None if the run has no t-SNE.

    run: a run of nearest neighbours, which wrote the t-SNE for TensorBoard's projector. Coordinates
    are in 0..1000 and 0..640. At most `most` images are shown: first misclassified test images,
    then other test images, then a random sample of the others.
    """
    planes = read_planes(run.directory)
    if "after" not in planes:
        return None
    rows = read_metadata(run.directory / PROJECTOR / "metadata.tsv")
    is_test = np.array([r["split"] == "test" for r in rows])
    wrong = np.array([r["correct"] == "no" for r in rows]) & is_test
    order = np.random.default_rng(0).permutation(len(rows))
    # A stable sort of shuffled rows: random within each group.
    first = order[np.argsort((~wrong * 1 + ~is_test * 1)[order], kind="stable")]
    kept = np.sort(first[:most])
    # Points drawn last are on top; in random order, no class covers the others.
    kept = order[np.isin(order, kept)]
    kept = kept[np.argsort((is_test * 1 + wrong)[kept], kind="stable")]
    shown = [rows[k] for k in kept]
    positions = {name: fit_to_map(plane)[kept].tolist() for name, plane in planes.items()}
    colours = {c: class_colour(c, k) for k, c in enumerate(classes)}
    sheet, columns = thumbnails([r["path"] for r in shown])
    return {
        "points": [
            {"x": x, "y": y, "label": r["class"], "test": bool(t), "wrong": bool(w)}
            for (x, y), r, t, w in zip(
                positions["after"], shown, is_test[kept], wrong[kept], strict=True
            )
        ],
        "before": "before" in positions,
        "all": len(rows),
        "colours": colours,
        "legend": list(colours.items()),
        "data": {
            **positions,
            "sprite": sheet,
            "columns": columns,
            "rows": columns,
            "descriptions": [describe_point(r) for r in shown],
        },
    }


def read_planes(directory: Path) -> dict[str, np.ndarray]:
    """Return {"after": float [N, 2], "before": ...}, the t-SNE in the files of the projector."""
    from google.protobuf import text_format
    from tensorboard.plugins import projector

    file = directory / "projector_config.pbtxt"
    if not file.exists():
        return {}
    config = text_format.Parse(file.read_text(), projector.ProjectorConfig())
    return {
        entry.tensor_name.split()[1]: np.loadtxt(directory / entry.tensor_path, ndmin=2)
        for entry in config.embeddings
        if entry.tensor_name.startswith("t-SNE ")
    }


def read_metadata(file: Path) -> list[dict[str, str]]:
    """Return the rows of the projector's metadata table."""
    # The csv module is not used, because the format has no quotes.
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def fit_to_map(plane: np.ndarray) -> np.ndarray:
    """Scale points [N, 2] to the map without distortion, rounded to tenths."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    room = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_BORDER
    # The orientation of a t-SNE is arbitrary: make the longer side horizontal.
    if high[1] - low[1] > high[0] - low[0]:
        plane, low, high = plane[:, ::-1], low[::-1], high[::-1]
    scale = float(np.min(room / np.maximum(high - low, 1e-9)))
    return np.round((plane - (low + high) / 2) * scale + [MAP_WIDTH / 2, MAP_HEIGHT / 2], 1)


def thumbnails(paths: list[str]) -> tuple[str, int]:
    """Return thumbnails of all images as one WebP, row by row in a square, and its column count.

    The WebP is returned as a data URI, or as "" if no image can be read.
    """
    from cxr_tf.data.decoding import load_images

    images, unreadable = load_images(paths, THUMBNAIL)
    columns = math.ceil(math.sqrt(len(paths)))
    if len(unreadable) == len(paths):
        return "", columns
    sheet = Image.fromarray(sprite(np.asarray(images)))
    return data_uri(webp(sheet, THUMBNAIL_QUALITY), "webp"), columns


def describe_point(row: dict[str, str]) -> str:
    """Describe an image of the map: class, split, prediction and file name."""
    text = f"{row['class']}, {row['split']}"
    if row["predicted"]:
        text += f"; predicted {row['predicted']}"
        text += "" if row["correct"] == "yes" else " (wrong)"
    return f"{text}. {Path(row['path']).name}"
