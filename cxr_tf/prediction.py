"""Images in, predictions out, by a SavedModel on disk or by a running TF Serving.

python scripts/predict.py --model saved_models/vgg16-binary --images ward/*.jpeg --output out.csv
"""

import contextlib
import glob
import json
import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.client import Ask, BadImages, connect, read_image
from cxr_tf.data import dicom
from cxr_tf.data.reading import IMAGE_SUFFIXES, check_utf8, visible_files
from cxr_tf.errors import UserError
from cxr_tf.paths import beside, expanded, short_stem
from cxr_tf.runs import write_csv, write_json
from cxr_tf.settings import Predict, check_numbers

log = logging.getLogger(__name__)

# Signatures whose answer is a picture. One image there is the work of hundreds.
PICTURES = ("occlusion", "explain")

# Outputs that are drawn over the radiograph, and what their numbers are. Other pictures are images
# in 0..255 themselves.
HEATMAPS = {"heatmap": "fall of the probability", "anomaly_map": "anomaly"}


@dataclass(frozen=True)
class Answers:
    """What came back for one batch: outputs of the rows that were answered, reasons of the others.

    rows: indices into the paths, in the order of the outputs' first axis; contents: of those rows.
    """

    rows: list[int]
    contents: list[bytes]
    outputs: dict[str, np.ndarray]
    reasons: dict[int, str]


def predict(settings: Predict) -> None:
    """Prints or writes the prediction of each image, in the order given.

    Raises UserError, with nothing written, for a bad image (unless --on-bad-image nan), a model or
    a server that is none, and an output that is there already.
    """
    check_numbers(settings)
    drawn = settings.signature in PICTURES
    output = check_output(settings)
    paths = find_images(settings.images)
    ask = open_model(settings)
    with beside(output) if drawn and output else contextlib.nullcontext() as folder:
        check_output(settings)  # again: another process, which was waited for, may have written it
        told, reasons = collect(settings, ask, paths, folder)
        marked = settings.on_bad_image == "nan"
        check_output(settings)
        if folder and output:
            write_table(folder / "predictions.csv", paths, told, reasons, marked)
            put_in_place(folder, output)
        elif output:
            write_table(output, paths, told, reasons, marked)
        else:
            print_table(paths, told, reasons, marked)
    if reasons:
        log.info("%d of %d images could not be read", len(reasons), len(paths))
    if output:
        log.info("%d predictions: %s", len(paths) - len(reasons), output)


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


def open_model(settings: Predict) -> Ask:
    """The signature to ask, of a server or of a SavedModel."""
    if settings.server:
        if settings.engine != "auto" or settings.engine_precision != "float32":
            raise UserError("--engine is for a model on disk: a server chooses its own")
        return connect(
            settings.server,
            settings.model,
            signature=settings.signature,
            version=settings.version,
            label=settings.label,
            timeout=settings.timeout,
        )
    if settings.version is not None or settings.label:
        raise UserError("--version and --label go with --server; name the version's folder instead")
    from cxr_tf import serving

    served = serving.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    return served.ask(settings.signature)


def collect(
    settings: Predict, ask: Ask, paths: list[str], folder: Path | None
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """{row: its answers} and {row: what is wrong with it}; draws the heatmaps into `folder`."""
    told: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    show = progress(len(paths))
    batch_size = settings.batch_size or (4 if settings.signature in PICTURES else 32)
    for answers in ask_in_batches(ask, paths, batch_size, settings.on_bad_image):
        reasons |= answers.reasons
        for k, row in enumerate(answers.rows):
            told[row] = plain(answers.outputs, k)
            if folder:
                file = Path(paths[row])
                title = f"{file.name}  {told[row].get('label', '')}"
                draw(answers, k, folder / f"{row:05d}-{short_stem(file)}", title)
        show(len(told) + len(reasons))
    if reasons:
        if not told:
            # Which columns there are, only an answer tells.
            from cxr_tf.store import phantom_file

            told[-1] = plain(ask([phantom_file()]), 0)
        told |= {row: blank(next(iter(told.values()))) for row in reasons}
        told.pop(-1, None)
    return told, reasons


def ask_in_batches(
    ask: Ask, paths: list[str], batch_size: int, on_bad_image: str
) -> Iterator[Answers]:
    """Answers to all images, batch by batch.

    A bad image makes a model refuse the whole request and name its position: the others are asked
    again without it, or, with `on_bad_image` "error", UserError names the file.
    """
    for start in range(0, len(paths), batch_size):
        rows, contents, reasons = [], [], {}
        for row in range(start, min(start + batch_size, len(paths))):
            try:
                contents.append(read_image(paths[row]))
                rows.append(row)
            except (UserError, OSError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                reasons[row] = reason.removeprefix(f"{paths[row]}: ")
        outputs: dict[str, np.ndarray] = {}
        while rows and not (reasons and on_bad_image == "error"):
            try:
                outputs = ask(contents)
                break
            except BadImages as bad:
                reasons |= {rows[k]: reason for k, reason in bad.reasons.items()}
                kept = [k for k in range(len(rows)) if k not in bad.reasons]
                rows, contents = [rows[k] for k in kept], [contents[k] for k in kept]
        if reasons and on_bad_image == "error":
            row = min(reasons)
            raise UserError(
                f"{paths[row]}: {reasons[row]}; mend or remove it, or have such files marked by "
                "--on-bad-image nan"
            )
        yield Answers(rows, contents, outputs, reasons)


def progress(total: int) -> Callable[[int], None]:
    """A function to call with how many are done: a line on stderr, at times."""
    started = shown = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        last = terminal and done == total
        if last or now - shown > (0.2 if terminal else 10):
            shown = now
            line = f"{done} of {total} images, {done / max(now - started, 1e-9):.1f}/s"
            # On a terminal each line is written over the one before.
            end = "\r" if terminal and not last else "\n"
            print(line, end=end, file=sys.stderr, flush=True)

    return show


# ---------------------------------------------------------------------- one image's answers


def plain(outputs: dict[str, np.ndarray], row: int) -> dict[str, Any]:
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


# ---------------------------------------------------------------------- pictures


def draw(answers: Answers, k: int, stem: Path, title: str) -> None:
    """Writes the pictures among the outputs of one image as <stem>[-<output>].png."""
    import tensorflow as tf
    from matplotlib import pyplot as plt
    from PIL import Image

    from cxr_tf import figures
    from cxr_tf.data.pipeline import decode_radiograph

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


def put_in_place(folder: Path, output: Path) -> None:
    """Renames a finished folder; one that is there goes only when the new one is complete."""
    if not output.exists():
        os.rename(folder, output)
        return
    old = folder.with_name(f"{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed at the last line
    os.rename(output, old)
    os.rename(folder, output)
    shutil.rmtree(old)


# ---------------------------------------------------------------------- images


def find_images(wanted: tuple[str, ...]) -> list[str]:
    """Files, folders (recursively) and glob patterns -> image paths, each once, in that order.

    Raises UserError for one that names nothing, and for none at all.
    """
    if not wanted:
        raise UserError("--images names no image: a file, a folder or a pattern")
    found: dict[str, None] = {}
    others = Counter[str]()
    for item in wanted:
        if not item:
            raise UserError("--images names no image: one of its values is empty")
        path = expanded(item)
        if path.is_dir():
            inside = []
            for p in visible_files(path):
                if p.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(p):
                    inside.append(str(p))
                else:
                    others[p.suffix.lower() or "no suffix"] += 1
            if not inside:
                raise UserError(f"no JPEG, PNG or DICOM image in {item}")
        elif path.is_file():
            inside = [str(path)]
        else:
            inside = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not inside:
                raise UserError(f"no such image, folder or pattern: {item}")
        found |= dict.fromkeys(inside)
    if others:
        named = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        print(f"left out, being neither JPEG, PNG nor DICOM: {named}", file=sys.stderr)
    for name in found:
        check_utf8(Path(name))
    return list(found)
