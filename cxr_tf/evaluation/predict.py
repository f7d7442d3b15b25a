"""Predict images with a SavedModel on disk or a running TF Serving server.

python scripts/predict.py --model saved_models/vgg16-binary --images ward/*.jpeg --output out.csv
"""

import contextlib

from cxr_tf.config import Predict, check_numbers
from cxr_tf.data.image_files import find_images
from cxr_tf.data.sources import dicomweb
from cxr_tf.evaluation.predict_dicom import predict_dicom
from cxr_tf.evaluation.prediction_loop import log_counts, predict_images
from cxr_tf.evaluation.prediction_output import (
    PICTURES,
    check_output,
    picture_writer,
    print_table,
    write_table,
)
from cxr_tf.files import replace_folder, temporary_sibling
from cxr_tf.serving.open_model import open_signature


def predict(settings: Predict) -> None:
    """Print or write the predictions of images, in the given order.

    Raises UserError and writes nothing for a bad image (unless --on-bad-image nan), a missing model
    or server, and an output that already exists.
    """
    check_numbers(settings)
    if settings.format == "dicom":
        predict_dicom(settings)
        return
    drawn = settings.signature in PICTURES
    output = check_output(settings)
    with dicomweb.downloaded(settings.images) as (images, urls):
        paths = find_images(images)
        predictor = open_signature(settings)
        with temporary_sibling(output) if drawn and output else contextlib.nullcontext() as folder:
            check_output(settings)  # again: another process may have created it meanwhile
            write = picture_writer(folder, paths) if folder else None
            predictions, reasons = predict_images(settings, predictor, paths, write)
            marked = settings.on_bad_image == "nan"
            names = [urls.get(path, path) for path in paths]
            check_output(settings)
            if folder and output:
                write_table(folder / "predictions.csv", names, predictions, reasons, marked)
                replace_folder(folder, output)
            elif output:
                write_table(output, names, predictions, reasons, marked)
            else:
                print_table(names, predictions, reasons, marked)
    log_counts(len(paths), len(reasons), output)
