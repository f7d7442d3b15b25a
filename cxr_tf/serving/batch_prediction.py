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
                reasons[row] = reason_of(error, paths[row])
        if reasons and on_bad_image == "error":
            batch = BatchPredictions([], [], {}, reasons)
        else:
            batch = predict_readable(
                predict, rows, contents, stop=on_bad_image == "error", alone=len(paths) == 1
            )
            reasons |= batch.reasons
        if reasons and on_bad_image == "error":
            row = min(reasons)
            raise UserError(
                f"{paths[row]}: {reasons[row]}. Fix or remove the file, or pass --on-bad-image nan "
                "to mark such files in the output"
            )
        yield BatchPredictions(batch.rows, batch.contents, batch.outputs, reasons)


def predict_readable(
    predict: PredictFn,
    rows: list[int],
    contents: list[bytes],
    *,
    stop: bool = False,
    alone: bool = False,
) -> BatchPredictions:
    """Predict one batch without the images that the model refuses.

    rows: what the images are called in the result. `stop` leaves it at the first refusal, with the
    reasons and no outputs. A batch of one is predicted as two copies unless the image is `alone`:
    for a single image some kernels sum in another order, and its last bits would depend on where a
    list is cut into batches.
    """
    reasons: dict[int, str] = {}
    while rows:
        pair = len(contents) == 1 and not alone
        try:
            outputs = predict(contents * 2 if pair else contents)
            if pair:
                outputs = {name: values[:1] for name, values in outputs.items()}
            return BatchPredictions(rows, contents, outputs, reasons)
        except BadImages as bad:
            reasons |= {rows[k]: reason for k, reason in bad.reasons.items() if k < len(rows)}
            kept = [k for k in range(len(rows)) if k not in bad.reasons]
            rows, contents = [rows[k] for k in kept], [contents[k] for k in kept]
            if stop:
                break
    return BatchPredictions([], [], {}, reasons)


def reason_of(error: Exception, path: str) -> str:
    """Return why a file cannot be read, without its path."""
    reason = getattr(error, "strerror", None) or str(error)
    return reason.removeprefix(f"{path}: ")


def progress(total: int, before: int = 0) -> Callable[[int], None]:
    """Return a function to call with how many images are done: a line on stderr, at times.

    before: how many were done at the start, which say nothing of the speed.
    """
    started = shown = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        last = terminal and done == total
        if last or now - shown > (0.2 if terminal else 10):
            shown = now
            rate = (done - before) / max(now - started, 1e-9)
            left = f", {duration((total - done) / rate)} left" if rate > 0 and done < total else ""
            line = f"{done} of {total} images, {rate:.1f}/s{left}"
            # On a terminal each line is written over the one before.
            end = "\r" if terminal and not last else "\n"
            print(f"{line:<60}" if terminal else line, end=end, file=sys.stderr, flush=True)

    return show


def duration(seconds: float) -> str:
    """Return a time span in words, such as `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
