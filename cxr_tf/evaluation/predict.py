"""Images in, predictions out, by a SavedModel on disk or by a running TF Serving.

python scripts/predict.py --model saved_models/vgg16-binary --images ward/*.jpeg --output out.csv
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

from cxr_tf.config import Predict, check_numbers
from cxr_tf.data.image_files import find_images
from cxr_tf.evaluation.prediction_output import (
    PICTURES,
    blank,
    check_output,
    draw_images,
    image_predictions,
    print_table,
    write_table,
)
from cxr_tf.files import replace_folder, short_stem, temporary_sibling
from cxr_tf.serving.batch_prediction import open_signature, predict_in_batches, progress
from cxr_tf.serving.client import PredictFn

log = logging.getLogger(__name__)


def predict(settings: Predict) -> None:
    """Prints or writes the prediction of each image, in the order given.

    Raises UserError, with nothing written, for a bad image (unless --on-bad-image nan), a model or
    a server that is none, and an output that is there already.
    """
    check_numbers(settings)
    drawn = settings.signature in PICTURES
    output = check_output(settings)
    paths = find_images(settings.images)
    ask = open_signature(settings)
    with temporary_sibling(output) if drawn and output else contextlib.nullcontext() as folder:
        check_output(settings)  # again: another process, which was waited for, may have written it
        told, reasons = collect(settings, ask, paths, folder)
        marked = settings.on_bad_image == "nan"
        check_output(settings)
        if folder and output:
            write_table(folder / "predictions.csv", paths, told, reasons, marked)
            replace_folder(folder, output)
        elif output:
            write_table(output, paths, told, reasons, marked)
        else:
            print_table(paths, told, reasons, marked)
    if reasons:
        log.info("%d of %d images could not be read", len(reasons), len(paths))
    if output:
        log.info("%d predictions: %s", len(paths) - len(reasons), output)


def collect(
    settings: Predict, ask: PredictFn, paths: list[str], folder: Path | None
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """{row: its answers} and {row: what is wrong with it}; draws the heatmaps into `folder`."""
    told: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    show = progress(len(paths))
    batch_size = settings.batch_size or (4 if settings.signature in PICTURES else 32)
    for answers in predict_in_batches(ask, paths, batch_size, settings.on_bad_image):
        reasons |= answers.reasons
        for k, row in enumerate(answers.rows):
            told[row] = image_predictions(answers.outputs, k)
            if folder:
                file = Path(paths[row])
                title = f"{file.name}  {told[row].get('label', '')}"
                draw_images(answers, k, folder / f"{row:05d}-{short_stem(file)}", title)
        show(len(told) + len(reasons))
    if reasons:
        if not told:
            # Which columns there are, only an answer tells.
            from cxr_tf.serving.warm_up import phantom_file

            told[-1] = image_predictions(ask([phantom_file()]), 0)
        told |= {row: blank(next(iter(told.values()))) for row in reasons}
        told.pop(-1, None)
    return told, reasons
