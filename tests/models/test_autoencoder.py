"""Tests of the parts of the autoencoder networks."""

from pathlib import Path

import numpy as np


def test_structural_similarity_matches_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    from cxr_tf.models.autoencoder import structural_similarity

    rng = np.random.default_rng(0)
    first = rng.normal(size=(2, 48, 48, 1)).astype(np.float32)
    second = first + rng.normal(scale=0.5, size=first.shape).astype(np.float32)
    ours = np.asarray(structural_similarity(first, second))
    # TensorFlow averages the windows that lie inside the image.
    inside = ours[:, 5:-5, 5:-5].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(inside, tf.image.ssim(first, second, max_val=4.0), atol=1e-4)
    np.testing.assert_allclose(structural_similarity(first, first), 1.0, atol=1e-4)
