"""Predict with SavedModels in a process that imports TensorFlow and nothing of `cxr_tf`.

`cxr_tf.serving.check_served` starts it as `python bare_process.py JOB.json`. It loads a model as TF
Serving does: by the tag `serve`, with the tensors that the signature names.
"""

import json
import os
import sys
from pathlib import Path

BATCH = 16


def predict(folder: str, files: list[bytes]) -> dict:
    """Return the outputs of `serving_default`, float or bytes [N, ...], for N image files."""
    import numpy as np
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        signature = loaded.signature_def["serving_default"]
        (image_bytes,) = (info.name for info in signature.inputs.values())
        outputs = {name: info.name for name, info in signature.outputs.items()}
        parts = [
            session.run(outputs, {image_bytes: np.array(files[start : start + BATCH], object)})
            for start in range(0, len(files), BATCH)
        ]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def main(job: Path) -> None:
    """Run a job: [{"model": folder, "files": TFRecord of images, "predictions": output .npz}]."""
    import numpy as np
    import tensorflow as tf

    for task in json.loads(job.read_text()):
        records = tf.data.TFRecordDataset(task["files"])
        outputs = predict(task["model"], list(records.as_numpy_iterator()))
        # Fixed-length bytes, because object arrays would need pickle.
        outputs = {n: v.astype("S") if v.dtype == object else v for n, v in outputs.items()}
        with open(task["predictions"], "wb") as file:
            np.savez(file, **outputs)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(Path(sys.argv[1]))
