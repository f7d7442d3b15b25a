"""What a faster precision costs in AUROC and gains in speed."""

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


# What a faster way to calculate may cost on validation, before it is advised against.
MOST_AUROC_LOST = 0.002


def precision_cost(settings: Evaluate, served: loading.ServedModel) -> dict[str, float]:
    """What a model's precision costs and gains against TensorFlow's float32, on validation; logged.

    Of a folder without split folders, on all of it. Both take the same batches in turn, from files
    to answers, after a warm-up.
    """
    try:
        on_val = replace(settings, split="val")
        part = open_subset(on_val, served, served.card["task"], served.classes)
    except UserError as error:
        raise UserError(f"--engine-precision is judged on validation: {error}") from None
    exact = replace(served, engine="tensorflow", precision="float32")
    began = time.perf_counter()
    fast = served.predictor("serving_default")
    preparing = time.perf_counter() - began
    asks = [exact.predictor("serving_default"), fast]
    seconds = [0.0, 0.0]
    found: list[list[np.ndarray]] = [[], []]
    paths = part.catalog.paths
    for start in range(0, len(paths), settings.batch_size):
        contents = served.decode(paths[start : start + settings.batch_size])
        for k, ask in enumerate(asks):
            if start == 0:
                ask(contents)
            began = time.perf_counter()
            found[k].append(ask(contents)["probabilities"])
            seconds[k] += time.perf_counter() - began
    threshold = served.card["threshold"]
    auroc = []
    for answers in found:
        probabilities = np.concatenate(answers)
        predicted = export.decide(tf.constant(probabilities), threshold).numpy()
        scores = metrics.classification_scores(part.labels, probabilities, predicted, part.classes)
        auroc.append(float(scores["auroc"]))
    lost, gain = auroc[0] - auroc[1], seconds[0] / seconds[1]
    log.info(
        "%s on OpenVINO against float32 on TensorFlow, %d validation images: AUROC %.4f against "
        "%.4f (%.4f lost), %.1f times as fast after %.0f s to get ready%s",
        *(served.precision, len(paths), auroc[1], auroc[0], lost, gain, preparing),
        ". That is too much: leave out --engine-precision" if lost > MOST_AUROC_LOST else "",
    )
    return {
        "val_auroc": auroc[1],
        "val_auroc_float32": auroc[0],
        "times_as_fast": gain,
        "seconds_to_get_ready": preparing,
    }
