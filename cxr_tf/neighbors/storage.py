"""A fitted KNN on disk: a pickle, a skops file without code, and a manifest with checksums.

write_knn(knn, folder, manifest)
pipeline, manifest = load_knn("saved_models/vgg16-binary-knn")
pipeline.predict_proba(embeddings)          # float32 [N, D] -> shares of the vote [N, C]
"""

import hashlib
import pickle
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import tensorflow as tf
from sklearn.pipeline import Pipeline

from cxr_tf.errors import UserError, first_line
from cxr_tf.files import digest_files, expand_user, read_json, write_json
from cxr_tf.neighbors.embeddings import batches, embed_files
from cxr_tf.neighbors.selection import before_knn
from cxr_tf.serving import loading
from cxr_tf.serving.store import model_config

MANIFEST = "knn.json"

MANIFEST_FIELDS = {
    "sha256": {"*": str},
    "embedding_width": int,
    "scikit-learn": str,
    "classes": [str],
    "k": int,
    "classifier": {"name": str, "version": int},
}


def write_knn(knn: Pipeline, folder: Path, manifest: dict[str, Any]) -> None:
    """Write `knn.pkl`, `knn.skops` and the manifest `knn.json`, which records their checksums."""
    import skops.io

    with (folder / "knn.pkl").open("wb") as file:
        pickle.dump(knn, file, protocol=5)
    skops.io.dump(knn, folder / "knn.skops")
    write_json(
        folder / MANIFEST,
        {
            **manifest,
            "sha256": {
                name: digest_files(folder / name, algorithm="sha256")
                for name in ("knn.pkl", "knn.skops")
            },
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def load_knn(
    model: str, *, embedding_width: int | None = None, without_code: bool = False
) -> tuple[Pipeline, dict[str, Any]]:
    """Load a pipeline and its manifest from the folder of a model or of one of its versions.

    model: saved_models/<name>, for the newest version, or saved_models/<name>/<version>.
    `embedding_width` is the width D of the embeddings to be classified. A pickle can run any code
    when it is loaded; the checksum in the manifest shows only that both were written together.
    `without_code` loads `knn.skops`, which contains no executable code, instead of the pickle.

    Raises UserError if a file is missing or cannot be loaded, or if the checksum or the width
    differs. Warns if the pipeline was fitted with a different version of scikit-learn.
    """
    folder = expand_user(model)
    if not (folder / MANIFEST).exists():
        numbers = model_config.model_versions(folder)
        if not numbers or not (folder / str(numbers[-1]) / MANIFEST).exists():
            raise UserError(f"{model} is not a nearest-neighbours model: it has no {MANIFEST}")
        folder = folder / str(numbers[-1])
    manifest = read_json(folder / MANIFEST, MANIFEST_FIELDS)
    name = "knn.skops" if without_code else "knn.pkl"
    file = folder / name
    if not file.exists():
        raise UserError(f"{folder} lacks {name}: run fit_knn.py again")
    content = file.read_bytes()
    # Checked before unpickling, on the very bytes that are unpickled.
    if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
        raise UserError(
            f"{file} does not match the sha256 in {MANIFEST} and is not loaded: run fit_knn.py "
            "again, or copy it from a source that you trust"
        )
    if embedding_width is not None and embedding_width != manifest["embedding_width"]:
        raise UserError(
            f"{file} takes embeddings of width {manifest['embedding_width']}, not "
            f"{embedding_width}: it belongs to {manifest['classifier']['name']} version "
            f"{manifest['classifier']['version']}"
        )
    if manifest["scikit-learn"] != sklearn.__version__:
        warnings.warn(
            f"{file} was fitted with scikit-learn {manifest['scikit-learn']}, but "
            f"{sklearn.__version__} is installed: results may differ",
            stacklevel=2,
        )
    try:
        if without_code:
            import skops.io

            return skops.io.loads(content), manifest
        return pickle.loads(content), manifest
    except Exception as error:  # both libraries can raise errors of any type
        reason = first_line(error)
        raise UserError(f"{file} cannot be loaded ({reason}): run fit_knn.py again") from error


def check_agreement(
    folder: Path, knn: Pipeline, values: np.ndarray | None, paths: Sequence[str], batch_size: int
) -> dict[str, Any]:
    """Compare the predictions of a SavedModel on image files with those of the pipeline.

    values: float32 [N, D], the embeddings of `paths`; if None, the classifier in the exported model
    computes them. Returns how many images have the same label, and probabilities within 1e-4.
    Raises RuntimeError if any image differs, unless its k-th and (k+1)-th neighbours are tied to
    six digits, so that the rounding of an embedding determines which of them counts.
    """
    served = loading.ServedModel(folder, {}, tf.saved_model.load(str(folder)))
    signature = served.signature("serving_default")
    if values is None:
        classifier = loading.ServedModel(folder, {}, served.loaded.classifier)
        values = embed_files(classifier, paths, batch_size)
    shares = knn.predict_proba(values)
    exported, labels = np.empty_like(shares), []
    for rows in batches(len(paths), batch_size):
        encoded = tf.constant(served.decode(list(paths[rows])))
        out = signature(image_bytes=encoded)
        exported[rows] = out["probabilities"]
        names = [c.decode() for c in out["classes"].numpy()[0]]
        labels += [names.index(x.decode()) for x in out["label"].numpy()]
    difference = np.abs(exported - shares).max(axis=1)
    differs = (difference > 1e-4) | (np.array(labels) != shares.argmax(axis=1))
    ties = np.zeros(len(differs), bool)
    if differs.any() and knn[-1].n_neighbors < knn[-1].n_samples_fit_:
        last = knn[-1].n_neighbors
        distances, _ = knn[-1].kneighbors(before_knn(knn, values), last + 1)
        ties = distances[:, last] - distances[:, last - 1] <= 1e-6 * distances[:, last]
    wrong = np.flatnonzero(differs & ~ties)
    if len(wrong):
        raise RuntimeError(
            f"the exported model and the pickle disagree on {len(wrong)} of {len(paths)} images, "
            f"such as {paths[int(wrong[0])]}"
        )
    return {
        "images": len(paths),
        "equal": int((~differs).sum()),
        "largest_difference": float(difference.max()),
    }
