"""Anomaly scores from features of a pretrained network."""

import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from benchmarks.autoencoder.material import Material, Row, batches
from benchmarks.config import CompareAutoencoders
from cxr_tf.models import autoencoder, weights
from cxr_tf.models.classifier import build_classifier
from cxr_tf.training import inference

# Code size of the linear autoencoder of features.
FEATURE_CODE = 400

# Largest number of healthy images, evenly sampled: the features of each take a third of a megabyte.
MOST_FEATURED = 2000


def feature_maps(
    settings: CompareAutoencoders,
) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Return a function from images uint8 [N, S, S, 1] and a block to features float32 [N, D].

    block: number of a block of VGG16. Returns None without weights, or if the variant `features` is
    not selected. Raises UserError for weights that cannot be loaded.
    """
    is_selected = not settings.variants or "features" in settings.variants
    if settings.vgg16_weights == "none" or not is_selected:
        return None
    model = build_classifier("vgg16", classes=2, image_size=settings.image_size // 2)
    weights.load_weights(model, "vgg16", settings.vgg16_weights)

    def features(images: np.ndarray, block: int) -> np.ndarray:
        end = model.get_layer(f"block{block}_pool").output
        predict = inference.compiled(keras.Model(model.input, end))
        seen = autoencoder.as_network_sees(images, "denoising")
        parts = [predict(tf.constant(part, tf.float32)).numpy() for part in batches(seen)]
        return np.concatenate([x.reshape(len(x), -1) for x in parts])

    return features


def of_features(
    material: Material, features: Callable[[np.ndarray, int], np.ndarray]
) -> Iterator[tuple[str, Row]]:
    """Yield the scores of linear autoencoders and of nearest neighbours, both on features."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    healthy = material.healthy.images
    healthy = healthy[:: -(-len(healthy) // MOST_FEATURED)]
    for block in (3, 4, 5):
        started = time.perf_counter()
        known = features(healthy, block)
        mean, spread = known.mean(axis=0), known.std(axis=0) + 1e-3
        known = (known - mean) / spread
        pca = PCA(min(FEATURE_CODE, len(known) // 2), svd_solver="randomized", random_state=0)
        pca.fit(known)
        seconds = time.perf_counter() - started
        own = (features(material.val.images, block) - mean) / spread
        rest = ((own - pca.inverse_transform(pca.transform(own))) ** 2).mean(axis=1)
        yield f"VGG16's block {block}, linear autoencoder", Row(rest, None, seconds)
    near = NearestNeighbors(n_neighbors=5).fit(known)
    distances = near.kneighbors(own)[0].mean(axis=1)
    yield "VGG16's block 5, distance to five healthy images", Row(distances, None)
