"""Images in, predictions out, by a SavedModel on disk or by a running TF Serving.

python scripts/predict.py --model saved_models/vgg16-binary --images ward/*.jpeg --output out.csv
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

from cxr_tf.config import Predict, check_numbers
from cxr_tf.data.image_files import find_images
from cxr_tf.data.sources import dicomweb
from cxr_tf.evaluation.prediction_output import (
    PICTURES,
    ImageWriter,
    blank,
    check_output,
    image_predictions,
    picture_writer,
    print_table,
    put_in_place,
    write_table,
)
from cxr_tf.files import temporary_sibling
from cxr_tf.serving.batch_prediction import open_signature, predict_in_batches, progress
from cxr_tf.serving.client import PredictFn

log = logging.getLogger(__name__)


def predict(settings: Predict) -> None:
    """Prints or writes the prediction of each image, in the order given.

    Raises UserError, with nothing written, for a bad image (unless --on-bad-image nan), a model or
    a server that is none, and an output that is there already.
    """
    check_numbers(settings)
    if settings.format == "dicom":
        from cxr_tf.evaluation.predict_dicom import predict_dicom

        predict_dicom(settings)
        return
    drawn = settings.signature in PICTURES
    output = check_output(settings)
    with dicomweb.downloaded(settings.images) as (images, urls):
        paths = find_images(images)
        ask = open_signature(settings)
        with temporary_sibling(output) if drawn and output else contextlib.nullcontext() as folder:
            check_output(settings)  # again: another process, which was waited for, may have made it
            write = picture_writer(folder, paths) if folder else None
            told, reasons = collect(settings, ask, paths, write)
            marked = settings.on_bad_image == "nan"
            names = [urls.get(path, path) for path in paths]
            check_output(settings)
            if folder and output:
                write_table(folder / "predictions.csv", names, told, reasons, marked)
                put_in_place(folder, output)
            elif output:
                write_table(output, names, told, reasons, marked)
            else:
                print_table(names, told, reasons, marked)
    log_counts(len(paths), len(reasons), output)


def log_counts(images: int, unreadable: int, output: Path | str | None) -> None:
    """Log how many images were predicted, and where the predictions are."""
    if unreadable:
        log.info("%d of %d images could not be read", unreadable, images)
    if output:
        log.info("%d predictions: %s", images - unreadable, output)


def collect(
    settings: Predict, ask: PredictFn, paths: list[str], write: ImageWriter | None = None
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return {row: its predictions} and {row: what is wrong with it}; call `write` for each."""
    told: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    show = progress(len(paths))
    batch_size = settings.batch_size or (4 if settings.signature in PICTURES else 32)
    for answers in predict_in_batches(ask, paths, batch_size, settings.on_bad_image):
        reasons |= answers.reasons
        for k, row in enumerate(answers.rows):
            told[row] = image_predictions(answers.outputs, k)
            if write:
                write(row, answers, k, told[row])
        show(len(told) + len(reasons))
    if reasons:
        if not told:
            # Which columns there are, only an answer tells.
            from cxr_tf.serving.warm_up import phantom_file

            told[-1] = image_predictions(ask([phantom_file()]), 0)
        told |= {row: blank(next(iter(told.values()))) for row in reasons}
        told.pop(-1, None)
    return told, reasons
