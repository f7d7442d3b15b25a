"""Predict many images in batches, with a signature of a model on disk or on a server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_tf import console
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction.client import BadImages, PredictFn, read_image


@dataclass(frozen=True)
class BatchPredictions:
    """The predictions of one batch, and the reasons why images were rejected.

    rows: indices into the paths, in the order of the outputs' first axis; contents: the contents
    of those files; outputs: {name: [N, ...]}; reasons: {row: reason} of the rejected images.
    """

    rows: list[int]
    contents: list[bytes]
    outputs: dict[str, np.ndarray]
    reasons: dict[int, str]


def concatenated(
    predict: Callable[[Any], dict[str, np.ndarray]],
    items: Sequence[Any] | np.ndarray,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Call `predict` on slices of at most `batch_size` items; return its outputs for all items.

    items: N files, paths or images, at least one; each output is [N, ...], in the same order.
    """
    parts = [predict(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def predict_in_batches(
    predict: PredictFn, paths: list[str], batch_size: int, on_bad_image: str
) -> Iterator[BatchPredictions]:
    """Predict all images, batch by batch.

    A model rejects a batch with bad images and names their positions. The batch is then predicted
    again without them; or, if `on_bad_image` is "error", a UserError names the first bad file.
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
    """Predict one batch without the images that the model rejects.

    rows: the numbers of the images in the result; stop: return after the first rejection, with its
    reasons and without outputs; alone: the image is the only one to predict. A batch of one image
    that is not alone is predicted as two copies: some kernels sum a single image in a different
    order, so that its outputs would depend, in the last bits, on where a list is cut into batches.
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


def progress(total: int, before: int = 0) -> console.Progress:
    """Return a progress display of the images that are done; see `console.Progress`."""
    return console.Progress(total, "images", before=before)
