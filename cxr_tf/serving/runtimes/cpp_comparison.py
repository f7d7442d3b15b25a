"""Compare the outputs of the C++ runtime with TensorFlow's, for `check_served.py --runtime c++`.

The child process (`runtimes.cpp_process`) has run every signature of a model. Here the same images
are predicted by TensorFlow's Python package, and each output is compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import to_rgb
from cxr_tf.data.decoding import decode_radiograph
from cxr_tf.serving.prediction.client import bad_images, read_image
from cxr_tf.serving.runtimes.cpp_process import NO_IMAGE, SAMPLE
from cxr_tf.serving.store import cards


def prepare_task(model: Path, paths: Sequence[str], work: Path) -> dict[str, str]:
    """Write the images for the C++ process; return the fields of a task that only it needs."""
    work.mkdir()
    size = cards.read_card(model)["image_size"]
    images = [to_rgb(decode_radiograph(read_image(p), size)).numpy() for p in paths[:SAMPLE]]
    np.save(work / "images.npy", np.stack(images))
    return {
        "images": str(work / "images.npy"),
        "sample": str(work / "sample.npz"),
        "report": str(work / "report.json"),
    }


def compare_runtimes(
    model: Path, paths: Sequence[str], task: dict[str, str], tolerance: float
) -> dict[str, Any]:
    """Compare one model on the two runtimes; `agreed` states whether all checks passed.

    In the result, `signatures` has the `difference` of every output of every signature, by name,
    such as `embed/embedding`.
    """
    report = json.loads(Path(task["report"]).read_text())
    loaded = tf.saved_model.load(str(model))
    contents = tf.constant([read_image(p) for p in paths[:SAMPLE]])
    images = tf.constant(np.load(task["images"]))
    differences = {}
    with np.load(task["sample"]) as sample:
        for signature, function in sorted(loaded.signatures.items()):
            (name,) = function.structured_input_signature[1]
            outputs = function(**{name: contents if name == "image_bytes" else images})
            for output, expected in outputs.items():
                key = f"{signature}/{output}"
                differences[key] = difference(sample[key], expected.numpy())
    refusal = report["refusal"]
    reasons = bad_images(refusal["message"], [contents[0].numpy(), NO_IMAGE])
    refused = refusal["status"] == "INVALID_ARGUMENT" and list(reasons or ()) == [1]
    return {
        "agreed": refused
        and report["warm_up"] == report["recorded"]
        and report["threads_agree"]
        and not report["imports_tensorflow"]
        and all(value <= tolerance for value in differences.values()),
        "signatures": differences,
        "refusal": f"{refusal['status']}: {refusal['message']}".splitlines()[0],
        "warm_up": report["warm_up"],
        "threads_agree": report["threads_agree"],
    }


def difference(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference between an output and its expected value.

    NaN if the shapes differ. Floats: relative to the largest expected magnitude if that exceeds 1.
    Other types: 0 if all values are equal, otherwise NaN.
    """
    if values.shape != expected.shape:
        return float("nan")
    if expected.dtype.kind == "f":
        scale = max(1.0, float(np.abs(expected).max()))
        return float(np.abs(values - expected).max()) / scale
    return 0.0 if np.array_equal(values, expected.astype(values.dtype)) else float("nan")


def result_line(result: dict[str, Any]) -> str:
    """Return the result of `compare_runtimes` in one line."""
    line = (
        f"all {len(result['signatures'])} outputs agree with TensorFlow's, largest difference "
        f"{max(result['signatures'].values()):.1g}"
        if result["agreed"]
        else "a check of the C++ runtime failed, see metrics.json"
    )
    return (
        f"{line}; {len(result['warm_up'])} warm-up requests replayed; bad image: "
        f"{result['refusal']}"
    )
