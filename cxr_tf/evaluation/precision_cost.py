"""Measure the cost in AUROC and the gain in speed of a precision other than float32."""

import logging
import time
from dataclasses import replace

import numpy as np
import tensorflow as tf

from cxr_tf import metrics
from cxr_tf.config import Evaluate
from cxr_tf.errors import UserError
from cxr_tf.scoring.selection import open_subset
from cxr_tf.serving import export, loading

log = logging.getLogger(__name__)


# The log advises against a precision that costs more AUROC on validation than this.
LARGEST_AUROC_LOSS = 0.002


def precision_cost(settings: Evaluate, served: loading.ServedModel) -> dict[str, float]:
    """Compare a model's precision with TensorFlow's float32 on validation; log the result.

    Without split folders, all images of a folder are used. Both predict the same batches in turn,
    after a warm-up; the time is measured from the file contents to the predictions.
    """
    try:
        on_val = replace(settings, split="val")
        part = open_subset(on_val, served, served.card["task"], served.classes)
    except UserError as error:
        # The split is always val here.
        reason = str(error).removesuffix(": choose another --split")
        raise UserError(
            f"--engine-precision {served.precision} needs validation images, to measure its cost: "
            f"leave it out, or correct the error: {reason}"
        ) from None
    exact = replace(served, engine="tensorflow", precision="float32")
    began = time.perf_counter()
    fast = served.predictor("serving_default")
    setup_seconds = time.perf_counter() - began
    predictors = [exact.predictor("serving_default"), fast]
    seconds = [0.0, 0.0]
    outputs: list[list[np.ndarray]] = [[], []]
    paths = part.catalog.paths
    for start in range(0, len(paths), settings.batch_size):
        contents = served.decode(paths[start : start + settings.batch_size])
        for k, predict in enumerate(predictors):
            if start == 0:
                predict(contents)
            began = time.perf_counter()
            outputs[k].append(predict(contents)["probabilities"])
            seconds[k] += time.perf_counter() - began
    threshold = served.card["threshold"]
    auroc = []
    for batches in outputs:
        probabilities = np.concatenate(batches)
        predicted = export.decide(tf.constant(probabilities), threshold).numpy()
        scores = metrics.classification_scores(part.labels, probabilities, predicted, part.classes)
        auroc.append(float(scores["auroc"]))
    change, gain = auroc[1] - auroc[0], seconds[0] / seconds[1]
    log.info(
        "%s on OpenVINO versus float32 on TensorFlow, %d validation images: AUROC %.4f versus "
        "%.4f (change %+.4f), %.1f times as fast after a set-up of %.0f s%s",
        *(served.precision, len(paths), auroc[1], auroc[0], change, gain, setup_seconds),
        ". This loss is too large: leave out --engine-precision"
        if -change > LARGEST_AUROC_LOSS
        else "",
    )
    return {
        "val_auroc": auroc[1],
        "val_auroc_float32": auroc[0],
        "times_as_fast": gain,
        "setup_seconds": setup_seconds,
    }
