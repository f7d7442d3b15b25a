"""Unpack PneumoniaMNIST (MedMNIST v2, Yang et al. 2023) to a folder, and compute its scores.

    folder = unpack(Path("pneumoniamnist_64.npz"))     # data/pneumoniamnist_64-3f9c2a17/train/...
    scores(labels, probabilities)                      # {"medmnist_auc": ..., "medmnist_acc": ...}

The arrays are written once as PNG, which is lossless, so that training, prediction and the decoder
of exported models all read files.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.files import publish, temporary_sibling

SPLITS = ("train", "val", "test")

CLASSES = ("NORMAL", "PNEUMONIA")  # by label, 0 and 1


def unpack(file: Path) -> Path:
    """Write the images of a .npz to `data/<name>-<hash>/<split>/<class>/<row>.png`, once.

    The file has `<split>_images` uint8 [N, S, S] and `<split>_labels` [N, 1], with 1 for pneumonia.
    The hash is that of its content, so that a different file of the same name gets a different
    folder. Returns the folder, which appears whole or not at all. Raises UserError for a file with
    other arrays.
    """
    with file.open("rb") as opened:
        digest = hashlib.blake2b(digest_size=4)
        while block := opened.read(1 << 20):
            digest.update(block)
    folder = Path("data") / f"{file.stem}-{digest.hexdigest()}"
    if folder.exists():
        return folder
    with temporary_sibling(folder) as partial:
        if folder.exists():  # written by another process meanwhile
            return folder
        with ThreadPoolExecutor() as pool:
            for split, images, labels in _arrays(file):
                for name in CLASSES:
                    (partial / split / name).mkdir(parents=True)
                paths = [
                    partial / split / CLASSES[label] / f"{row:05d}.png"
                    for row, label in enumerate(labels)
                ]
                list(pool.map(_write_png, paths, images))
        publish(partial, folder)
    return folder


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return AUC and ACC as `medmnist.Evaluator` computes them, to compare with published ones.

    labels: int [N]. probabilities: float [N, 2]. The accuracy is that at a threshold of 0.5,
    whatever the operating point of the model.
    """
    from sklearn.metrics import accuracy_score, roc_auc_score

    score = probabilities[:, -1]
    return {
        "medmnist_auc": float(roc_auc_score(labels, score)),
        "medmnist_acc": float(accuracy_score(labels, score > 0.5)),
    }


def _arrays(file: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (split, images uint8 [N, S, S], labels int [N]), checked."""
    expected = (
        "expected arrays {train,val,test}_images, uint8 [N, S, S], "
        "and {train,val,test}_labels, [N, 1]"
    )
    try:
        # Unpickling objects could run code.
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise UserError(f"{file} contains one unnamed array; {expected}")
        with arrays:
            for split in SPLITS:
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
                rows = images.shape[:1]
                square = images.ndim == 3 and images.shape[1] == images.shape[2]
                if images.dtype != np.uint8 or not square:
                    raise UserError(
                        f"{file}: {split}_images is {images.dtype} {list(images.shape)}; {expected}"
                    )
                if labels.shape not in (rows, (*rows, 1)) or not np.isin(labels, (0, 1)).all():
                    raise UserError(
                        f"{file}: {split}_labels must contain one label, 0 or 1, per image; "
                        f"{expected}"
                    )
                yield split, images, labels.reshape(-1).astype(int)
    except KeyError as error:
        raise UserError(f"{file}: {error.args[0]}; {expected}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file} is damaged, is not a .npz file, or contains Python objects; {expected}"
        ) from None


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, compress_level=1)
