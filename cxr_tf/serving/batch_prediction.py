"""Batched predictions of many images, by a SavedModel on disk or by a server."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.serving.client import BadImages, PredictFn, connect, read_image


@dataclass(frozen=True)
class BatchPredictions:
    """The predictions of one batch, and the reasons why images were rejected.

    rows: indices into the paths, in the order of the outputs' first axis; contents: the files of
    those rows; outputs: {name: [N, ...]}; reasons: {row: reason} of the rejected images.
    """

    rows: list[int]
    contents: list[bytes]
    outputs: dict[str, np.ndarray]
    reasons: dict[int, str]


def open_signature(settings: Predict) -> PredictFn:
    """Return the signature of a server or of a SavedModel as a function."""
    if settings.server:
        if settings.engine != "auto" or settings.engine_precision != "float32":
            raise UserError("--engine is for a model on disk: leave it out with --server")
        return connect(
            settings.server,
            settings.model,
            signature=settings.signature,
            version=settings.version,
            label=settings.label,
            timeout=settings.timeout,
        )
    if settings.version is not None or settings.label:
        raise UserError("--version and --label need --server; name the version's folder instead")
    from cxr_tf.serving import loading

    served = loading.load_served(
        settings.model, engine=settings.engine, precision=settings.engine_precision
    )
    return served.predictor(settings.signature)


def predict_in_batches(
    predict: PredictFn, paths: list[str], batch_size: int, on_bad_image: str
) -> Iterator[BatchPredictions]:
    """Predict all images, batch by batch.

    A model refuses a batch with a bad image and names its position: the batch is predicted again
    without it, or, with `on_bad_image` "error", UserError names the file.
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
                outputs = predict(contents)
                break
            except BadImages as bad:
                reasons |= {rows[k]: reason for k, reason in bad.reasons.items()}
                kept = [k for k in range(len(rows)) if k not in bad.reasons]
                rows, contents = [rows[k] for k in kept], [contents[k] for k in kept]
        if reasons and on_bad_image == "error":
            row = min(reasons)
            raise UserError(
                f"{paths[row]}: {reasons[row]}. Fix or remove the file, or pass --on-bad-image nan "
                "to mark such files in the output"
            )
        yield BatchPredictions(rows, contents, outputs, reasons)


def progress(total: int) -> Callable[[int], None]:
    """Return a function of the number of images done, which reports progress on stderr."""
    started = shown = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        last = terminal and done == total
        if last or now - shown > (0.2 if terminal else 10):
            shown = now
            line = f"{done} of {total} images, {done / max(now - started, 1e-9):.1f}/s"
            # On a terminal each line overwrites the previous one.
            end = "\r" if terminal and not last else "\n"
            print(line, end=end, file=sys.stderr, flush=True)

    return show
