"""Random embeddings that belong to no images."""

from pathlib import Path

import numpy as np


def stored_embeddings(folder: Path, rows: int, width: int):
    """Store random embeddings that belong to no images; half of the rows are training rows."""
    from cxr_tf.data.catalog import Catalog, Radiograph
    from cxr_tf.neighbors.embeddings import Embeddings

    rng = np.random.default_rng(0)
    values = rng.random((rows, width), np.float32)
    np.savez(folder / "e.npz", embeddings=values)
    splits = ["train"] * (rows // 2) + ["val"] * (rows // 4) + ["test"] * (rows - rows * 3 // 4)
    radiographs = tuple(Radiograph("", "normal", "", s, "") for s in splits)
    catalog = Catalog("none", radiographs, findings=("normal",))
    labels = rng.integers(0, 2, rows)
    return Embeddings(
        folder / "e.npz", catalog, labels, rows // 2, values[:8].copy(), np.zeros((0, 2))
    )
