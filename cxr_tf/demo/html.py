"""Render HTML fragments of the page. Images are embedded as data URIs, so no file is written."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from cxr_tf.demo.analysis import Image, label_at
from cxr_tf.figures.overlays import heat_layer, png

SIDE = 512  # pixels of a radiograph on the page

COMPUTING = "computing ..."
NO_HEATMAP = "this model has no heatmap"
WELCOME = "<p class='hint'>Drop a radiograph here, or choose an example.</p>"

CSS = """
.cxr-verdict .label { font-size: 1.7rem; font-weight: 700; }
.cxr-verdict .bars { display: grid; grid-template-columns: max-content 1fr 4rem; gap: .3rem .7rem;
  align-items: center; margin: .6rem 0; }
.cxr-verdict .bar { position: relative; height: .9rem; border-radius: .45rem; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.cxr-verdict .bar span { display: block; height: 100%; background: #3b74b4; }
.cxr-verdict .bar i { position: absolute; top: 0; bottom: 0; width: 2px; background: #d1495b; }
.cxr-verdict .number { text-align: right; font-variant-numeric: tabular-nums; }
.cxr-verdict ul { list-style: none; margin: .5rem 0 0; padding: 0; }
.cxr-verdict li, .cxr-problem { border-left: 4px solid #d9902f; padding: .3rem .7rem;
  margin: .3rem 0; background: var(--background-fill-secondary); }
.cxr-problem { border-color: #d1495b; overflow-wrap: anywhere; }
.cxr-views { display: flex; flex-wrap: wrap; gap: 1rem; }
.cxr-views figure { flex: 1 1 15rem; max-width: 32rem; min-width: 0; margin: 0; }
.cxr-stack { position: relative; background: #000; border-radius: .4rem; overflow: hidden; }
.cxr-stack img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.cxr-stack img.heat { opacity: var(--cxr-opacity, .8); }
.cxr-views figcaption, .hint { color: var(--body-text-color); opacity: .8; font-size: .9rem;
  padding-top: .3rem; overflow-wrap: anywhere; }
.cxr-cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr));
  gap: .7rem; }
.cxr-cases figure { margin: 0; font-size: .85rem; overflow-wrap: anywhere; }
.cxr-cases img, .cxr-cases .missing { width: 100%; aspect-ratio: 1; border-radius: .3rem;
  margin: 0; }
.cxr-cases .missing { display: grid; place-items: center; text-align: center;
  background: var(--background-fill-secondary); }
"""


def escaped(text: str) -> str:
    """Escape text for HTML, and the braces and dollar signs that Gradio reads as a template."""
    return html.escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def verdict(image: Image, threshold: float | None, warnings: Sequence[str]) -> str:
    """Render the label, a bar for each probability with the operating point, and the warnings."""
    if image.reason:
        return problem(image)
    probabilities: dict[str, float] = image.prediction["probabilities"]
    label = label_at(image, threshold)
    bars = []
    for name, value in probabilities.items():
        is_positive = len(probabilities) == 2 and name == list(probabilities)[1]
        mark = (
            f"<i style='left:{100 * threshold:.1f}%' title='operating point'></i>"
            if is_positive and threshold is not None
            else ""
        )
        bars.append(
            f"<span>{escaped(name)}</span><div class='bar'>"
            f"<span style='width:{100 * value:.1f}%'></span>{mark}</div>"
            f"<span class='number'>{value:.3f}</span>"
        )
    notes = "".join(f"<li>{escaped(text)}</li>" for text in warnings)
    return (
        f"<div class='cxr-verdict' role='status'><div>{escaped(image.name)}</div>"
        f"<div class='label'>{escaped(label)}</div><div class='bars'>{''.join(bars)}</div>"
        f"<ul>{notes}</ul></div>"
    )


def problem(image: Image) -> str:
    """Render the reason why an image has no prediction."""
    return f"<div class='cxr-problem' role='alert'>{escaped(f'{image.name}: {image.reason}')}</div>"


def views(image: Image, *, heat: str = "", anomaly: str = "") -> str:
    """Render the radiograph with its heatmap and, beside it, with its anomaly map.

    heat, anomaly: caption if that map is not computed yet or not available.
    """
    picture = radiograph(image.content)
    label = image.prediction["label"]
    meaning = f"Occlusion: red where covering lowers the probability of {label}"
    figures = [_figure(picture, image.heat, heat or meaning)]
    if image.anomaly_map is not None or anomaly:
        caption = anomaly or _anomaly_caption(image)
        figures.append(_figure(picture, image.anomaly_map, caption))
    return f"<div class='cxr-views'>{''.join(figures)}</div>"


def _anomaly_caption(image: Image) -> str:
    score, threshold = image.anomaly["score"], image.anomaly["threshold"]
    result = "abnormal" if image.anomaly["is_anomaly"] else "normal"
    text = f"Anomaly map; score {score:.3g}, threshold {threshold:.3g}: {result}"
    if "percentile" in image.anomaly:
        text += f"; above {image.anomaly['percentile']:.0f} % of healthy images"
    return text


def _figure(picture: str, heat: np.ndarray | None, caption: str) -> str:
    layer = (
        "" if heat is None else f"<img class='heat' alt='' src='{_data(png(heat_layer(heat)))}'>"
    )
    return (
        f"<figure>{picture.replace('</div>', layer + '</div>')}"
        f"<figcaption role='status'>{escaped(caption)}</figcaption></figure>"
    )


def radiograph(content: bytes) -> str:
    """Render a radiograph in its original aspect ratio, decoded in the same way as for a model."""
    import tensorflow as tf

    from cxr_tf.data.decoding import decode_radiograph

    width, height = PillowImage.open(io.BytesIO(content)).size
    gray = np.squeeze(decode_radiograph(tf.constant(content), SIDE).numpy())
    return (
        f"<div class='cxr-stack' style='aspect-ratio:{width}/{height}'>"
        f"<img alt='radiograph' src='{_data(png(gray))}'></div>"
    )


def cases(neighbors: dict[str, Any], pictures: Sequence[np.ndarray | None]) -> str:
    """Render the most similar training cases with their labels and distances, nearest first."""
    shown = []
    for path, label, distance, picture in zip(
        neighbors["neighbor_paths"],
        neighbors["neighbor_labels"],
        neighbors["neighbor_distances"],
        pictures,
        strict=True,
    ):
        name = PurePath(path).name
        top = (
            f"<img alt='{escaped(name)}' src='{_data(png(picture))}'>"
            if picture is not None
            else "<div class='missing'>image not available</div>"
        )
        shown.append(
            f"<figure title='{escaped(name)}'>{top}<figcaption><b>{escaped(label)}</b>, "
            f"distance {distance:.3g}<br>{escaped(PurePath(path).stem)}</figcaption></figure>"
        )
    votes = ", ".join(
        f"{escaped(name)} {share:.0%}" for name, share in neighbors["probabilities"].items()
    )
    return f"<p>Vote of the {len(shown)} nearest: {votes}</p><div class='cxr-cases'>" + (
        "".join(shown) + "</div>"
    )


def download(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Render a link that saves a table as CSV, embedded as a data URI."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    return f"<a download='predictions.csv' href='data:text/csv;base64,{data}'>Download as CSV</a>"


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
