"""Export a classifier to another format, and verify it on the runtime of that format.

python scripts/export.py --model saved_models/vgg16-binary --format onnx --data chest_xray
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.config import Evaluate, Export, check_numbers
from cxr_tf.data.batches import to_rgb
from cxr_tf.data.dataset import ImageDataset
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user, temporary_sibling, write_json
from cxr_tf.metrics.classification import classification_scores
from cxr_tf.scoring.selection import open_subset
from cxr_tf.serving.conversion import (
    FILES,
    check_installed,
    convert,
    open_converted,
    runtime_version,
)
from cxr_tf.serving.export import decide
from cxr_tf.serving.loading import ServedModel, load_served
from cxr_tf.serving.prediction.batch_prediction import concatenated

log = logging.getLogger(__name__)

# The largest allowed difference of a float32 probability from that of the SavedModel.
TOLERANCE = 1e-3


def export(settings: Export) -> Path:
    """Convert a SavedModel, verify the result, and return the folder with it and its card.

    The folder is created only if no probability of a test image differs by more than 1e-3. With
    int8, larger differences are accepted; the card and the log state the AUROC of both models.

    Raises UserError for a model without the signature `tensor`, a missing package, an existing
    output folder, and a converted model whose probabilities differ.
    """
    check_numbers(settings)
    if settings.precision == "int8" and settings.format != "litert":
        raise UserError("--precision int8 is for --format litert")
    check_installed(settings.format)
    served = load_served(settings.model)
    if "tensor" not in served.loaded.signatures:
        raise UserError(
            f"{served.folder} is a model of kind '{served.card['kind']}', without the signature "
            "'tensor': only classifiers can be converted"
        )
    suffix = "-int8" if settings.precision == "int8" else ""
    name = f"{served.card['name']}-{settings.format}{suffix}"
    out = expand_user(settings.out or f"exports/{name}")
    if out.exists():
        raise UserError(f"--out {out} exists: remove it or choose another name")
    evaluated = Evaluate(model=settings.model, data=settings.data, seed=settings.seed)
    subset = open_subset(evaluated, served, served.card["task"], served.classes)
    with temporary_sibling(out) as partial:
        file = partial / FILES[settings.format]
        convert(served, settings.format, file, int8=settings.precision == "int8")
        verified = verify(served, file, subset, settings)
        write_json(partial / "model_card.json", model_card(served, settings, verified))
        partial.rename(out)
    log.info("exported: %s", out / file.name)
    return out


def verify(
    served: ServedModel, file: Path, subset: ImageDataset, settings: Export
) -> dict[str, Any]:
    """Compare a converted model with the SavedModel on all images of `subset`; log the result.

    Raises UserError if a float32 probability differs by more than 1e-3.
    """
    run, reference = open_converted(file), served.signature("tensor")

    def by_both(gray: np.ndarray) -> dict[str, np.ndarray]:
        images = to_rgb(gray)
        expected = reference(images=images)["probabilities"].numpy()
        return {"converted": run(images.numpy()), "saved_model": expected}

    probabilities = concatenated(by_both, subset.images, settings.batch_size)
    threshold = served.card.get("threshold", 0.5)
    labels = {k: decide(tf.constant(v), threshold).numpy() for k, v in probabilities.items()}
    difference = float(np.abs(probabilities["converted"] - probabilities["saved_model"]).max())
    changed = int((labels["converted"] != labels["saved_model"]).sum())
    result = {
        "images": len(subset.labels),
        "data": Path(settings.data).name,
        "runtime": runtime_version(settings.format),
        "largest_difference": difference,
        "changed_labels": changed,
    }
    log.info(
        "%s on %s, %d test images: largest difference in probability %.1e, %d labels changed",
        *(settings.format, result["runtime"], len(subset.labels), difference, changed),
    )
    if settings.precision == "int8":
        auroc = {
            k: float(classification_scores(subset.labels, v, labels[k], subset.classes)["auroc"])
            for k, v in probabilities.items()
        }
        result |= {"auroc": auroc["converted"], "auroc_float32": auroc["saved_model"]}
        log.info(
            "int8: AUROC %.4f, float32 %.4f (change %+.4f)",
            *(auroc["converted"], auroc["saved_model"]),
            auroc["converted"] - auroc["saved_model"],
        )
    elif not difference <= TOLERANCE:  # in this form NaN fails too
        raise UserError(
            f"probabilities of the converted model differ from those of {served.folder} by up to "
            f"{difference:.1e} (allowed: {TOLERANCE:.0e}; {len(subset.labels)} images compared); "
            "nothing was written"
        )
    return result


def model_card(served: ServedModel, settings: Export, verified: dict[str, Any]) -> dict[str, Any]:
    """Return the card of the SavedModel, changed to describe the converted file."""
    size = served.card["image_size"]
    tensors = {
        "inputs": {"images": {"dtype": "float32", "shape": [None, size, size, 3]}},
        "outputs": {"probabilities": {"dtype": "float32", "shape": [None, len(served.classes)]}},
    }
    return {
        **served.card,
        "signatures": {"tensor": tensors},
        "converted": {
            "format": settings.format,
            "file": FILES[settings.format],
            "precision": settings.precision,
            "from": f"{served.card['name']}/{served.card['version']}",
            "input": "decoded, resized and repeated as docs/export.md describes; values 0..255",
            "verified": verified,
        },
    }
