"""Predictions of many images, batch by batch, from disk or from a server."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.serving.client import BadImages, PredictFn, connect, read_image


@dataclass(frozen=True)
class BatchPredictions:
    """What came back for one batch: outputs of the rows that were answered, reasons of the others.

    rows: indices into the paths, in the order of the outputs' first axis; contents: of those rows.
    """

    rows: list[int]
    contents: list[bytes]
    outputs: dict[str, np.ndarray]
    reasons: dict[int, str]


def open_signature(settings: Predict) -> PredictFn:
    """Open the signature that the settings name, of a server or of a SavedModel."""
    return open_model(settings)(settings.signature)


def open_model(settings: Predict) -> Callable[[str], PredictFn]:
    """Open a model on a server or on disk; returns a function from signatures to what calls them.

    Raises UserError where there is no such model, and the function for a signature it lacks.
    """
    if settings.server:
        if settings.engine != "auto" or settings.engine_precision != "float32":
            raise UserError("--engine is for a model on disk: a server chooses its own")
        return lambda signature: connect(
            settings.server,
            settings.model,
            signature=signature,
            version=settings.version,
            label=settings.label,
            timeout=settings.timeout,
        )
    if settings.version is not None or settings.label:
        raise UserError("--version and --label go with --server; name the version's folder instead")
    from cxr_tf.serving import loading

    served = loading.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    return served.predictor


def predict_in_batches(
    ask: PredictFn, paths: list[str], batch_size: int, on_bad_image: str
) -> Iterator[BatchPredictions]:
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
        if not (reasons and on_bad_image == "error"):
            kept, outputs, refused = predict_readable(ask, contents)
            reasons |= {rows[k]: reason for k, reason in refused.items()}
            rows, contents = [rows[k] for k in kept], [contents[k] for k in kept]
        if reasons and on_bad_image == "error":
            row = min(reasons)
            raise UserError(
                f"{paths[row]}: {reasons[row]}; mend or remove it, or have such files marked by "
                "--on-bad-image nan"
            )
        yield BatchPredictions(rows, contents, outputs, reasons)


def predict_readable(
    predict: PredictFn, contents: Sequence[bytes]
) -> tuple[list[int], dict[str, np.ndarray], dict[int, str]]:
    """Predict the images that the model can read.

    Returns their positions, the outputs for them, and {position: reason} of the others. A bad image
    makes a model refuse the whole request, so the request is sent again without it.
    """
    kept = list(range(len(contents)))
    reasons: dict[int, str] = {}
    while kept:
        try:
            return kept, predict([contents[k] for k in kept]), reasons
        except BadImages as bad:
            reasons |= {kept[k]: reason for k, reason in bad.reasons.items()}
            kept = [k for k in kept if k not in reasons]
    return [], {}, reasons


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
