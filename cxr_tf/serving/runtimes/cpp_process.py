"""Predict with exported models on the C++ runtime, for `check_served.py --runtime c++`.

The program is started as `python -m cxr_tf.serving.runtimes.cpp_process JOB.json`. It never imports
TensorFlow's Python package, so that all results come from the C++ runtime.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cxr_tf.serving.prediction.batch_prediction import concatenated
from cxr_tf.serving.runtimes.cpp_runtime import (
    RuntimeStatusError,
    Session,
    load_session,
    read_records,
    warm_up_requests,
)

BATCH = 16
THREADS = 8

# Images predicted by every signature; few, because occlusion runs the network hundreds of times.
SAMPLE = 4

NO_IMAGE = b"not an image"


def predict(session: Session, signature: str, values: Any, batch: int) -> dict[str, np.ndarray]:
    """Return the outputs of a one-input signature for N files or images, run in batches."""
    (name,) = session.signatures[signature].inputs
    return concatenated(lambda part: session.run(signature, {name: part}), values, batch)


def examine(session: Session, folder: Path, files: list[bytes]) -> dict[str, Any]:
    """Test a loaded model with a bad image, its warm-up requests, and concurrent requests.

    refusal: status and message for a request whose second image is invalid. recorded: signatures
    with a warm-up request; warm_up: those that returned finite numbers for it. threads_agree:
    whether concurrent requests return the same bits as sequential ones.
    """
    refusal = {"status": "OK", "message": ""}
    try:
        session.run("serving_default", {"image_bytes": [files[0], NO_IMAGE]})
    except RuntimeStatusError as error:
        refusal = {"status": error.status, "message": error.message}

    warm_up = []
    requests = warm_up_requests(folder)
    for signature, inputs in requests:
        outputs = session.run(signature, inputs)
        if all(np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f"):
            warm_up.append(signature)

    def request(row: int) -> dict[str, np.ndarray]:
        return session.run("serving_default", {"image_bytes": [files[row % len(files)]]})

    rows = range(2 * THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        concurrent = list(pool.map(request, rows))
    sequential = [request(row) for row in rows]
    return {
        "refusal": refusal,
        "warm_up": sorted(warm_up),
        "recorded": sorted(signature for signature, _ in requests),
        "threads_agree": all(
            np.array_equal(a[name], b[name])
            for a, b in zip(concurrent, sequential, strict=True)
            for name in a
        ),
    }


def main(job: Path) -> None:
    """Run a job: [{"model", "files", "images", "predictions", "sample", "report"}], all paths.

    model: folder of a version. files: TFRecord of image files. images: .npy, float32 [N, S, S, 3],
    for the signature `tensor`. Output files: predictions, the outputs of `serving_default` for all
    files; sample, `signature/output` of every signature for the first SAMPLE files; report, the
    result of `examine`.
    """
    for task in json.loads(job.read_text()):
        folder = Path(task["model"])
        files = list(read_records(Path(task["files"])))
        with load_session(folder) as session:
            _write(task["predictions"], predict(session, "serving_default", files, BATCH))
            sample = {}
            for signature, definition in sorted(session.signatures.items()):
                takes_files = "image_bytes" in definition.inputs
                values = files[:SAMPLE] if takes_files else np.load(task["images"])
                for output, result in predict(session, signature, values, SAMPLE).items():
                    sample[f"{signature}/{output}"] = result
            _write(task["sample"], sample)
            report = examine(session, folder, files[:SAMPLE])
        report["imports_tensorflow"] = "tensorflow" in sys.modules
        Path(task["report"]).write_text(json.dumps(report))


def _write(path: str, arrays: dict[str, np.ndarray]) -> None:
    # Fixed-length bytes, because object arrays would need pickle.
    plain = {k: v.astype("S") if v.dtype == object else v for k, v in arrays.items()}
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **plain)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read by the library when it is loaded
    main(Path(sys.argv[1]))
