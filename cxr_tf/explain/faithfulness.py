"""Measures of how faithful heatmaps are to the model.

- Insertion and deletion (Petsiuk, Das and Saenko, "RISE", BMVC 2018, section 4.3): pixels are
  inserted into a blurred image, or deleted from the original, hottest first. For a faithful map the
  area under the curve of the target's probability is large for insertion and small for deletion. A
  random map is the baseline.
- Sensitivity to the weights (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018): the
  rank correlation between the map and that of the same model with shuffled weights: those of the
  last layer only, then those of all layers. A map that does not change does not explain the model.
- On phantoms, whose lesions are known: the pointing game (Zhang et al., "Top-down Neural Attention
  by Excitation Backprop", ECCV 2016), and the share of the heat inside the lesion.
- The share of the heat outside the chest: in a frame along the border and in the corners, where
  markers and labels usually are. A share larger than this region's share of the image area
  indicates a shortcut.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage, stats

from cxr_tf.models.layer_graph import read_network
from cxr_tf.models.occlusion.occluder import cover_images, equal_splits, in_chunks

# Steps of insertion and deletion: 3.6 % of the pixels each.
STEPS = 28

# Outside the chest: width of the frame and side of the corner squares, as shares of the side.
FRAME, CORNER = 1 / 16, 3 / 16


def insertion_deletion(
    model: keras.Model, *, batch_size: int = 32
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function that measures the areas under the insertion and deletion curves.

    It takes images float32 [N, S, S, 3], maps float32 [N, S, S] and targets int [N], and returns
    two arrays [N]: the areas, in 0..1, under the curves of the calibrated probability. Deleted
    pixels become the image's mean grey; inserted pixels replace those of an image blurred by a
    twentieth of the side. Both happen after the standardisation, as in occlusion, so that no other
    pixel changes.
    """
    network = read_network(model)
    size = network.size
    shares = np.linspace(0, 1, STEPS + 1)
    limits = tf.constant(np.round(shares * size * size), tf.int32)

    @tf.function(
        input_signature=[
            *[tf.TensorSpec([None, size, size, 3], tf.float32)] * 2,
            tf.TensorSpec([size, size], tf.int32),
        ],
        autograph=False,
    )
    def probabilities(image: tf.Tensor, cover: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
        """Return probabilities [STEPS + 1, C] as pixels of `cover` replace more and more pixels."""
        plain = network.standardise(image)
        other = network.standardise_as(image, cover)
        weights = network.weights()

        def chunk(rows: tf.Tensor) -> tf.Tensor:
            replaced = rank[None] < tf.gather(limits, rows)[:, None, None]
            return network.scores(tf.where(replaced[..., None], other, plain), weights)

        return tf.nn.softmax(
            in_chunks(chunk, equal_splits(tf.size(limits), batch_size), network.classes)
        )

    def areas(
        images: np.ndarray, maps: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inserted, deleted = [], []
        blurred = cover_images(images, "blur", max(1, size // 10))
        gray = cover_images(images, "mean", 1)
        for k, target in enumerate(targets):
            rank = ranks(maps[k])
            falling = probabilities(images[k : k + 1], gray[k : k + 1], rank).numpy()
            # Blurring the coldest pixels first is the reverse of inserting the hottest first.
            rising = probabilities(
                images[k : k + 1], blurred[k : k + 1], size * size - 1 - rank
            ).numpy()
            deleted.append(np.trapezoid(falling[:, target], shares))
            inserted.append(np.trapezoid(rising[::-1, target], shares))
        return np.array(inserted), np.array(deleted)

    return areas


def ranks(heat: np.ndarray) -> np.ndarray:
    """Return the rank of each pixel, int32 [S, S], 0 for the hottest; ties in random order.

    Ties in row order would form a sweep from the top, which is itself a structured map.
    """
    tie = np.random.default_rng(0).random(heat.size)
    order = np.lexsort((tie, -heat.ravel()))
    result = np.empty(heat.size, np.int32)
    result[order] = np.arange(heat.size, dtype=np.int32)
    return result.reshape(heat.shape)


def random_maps(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Draw random non-negative maps as smooth as those of occlusion: float32 [N, S, S]."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    return np.maximum(ndimage.gaussian_filter(noise, (0, size / 14, size / 14)), 0).astype(
        np.float32
    )


@contextmanager
def shuffled_weights(model: keras.Model, layers: list[keras.layers.Layer]) -> Iterator[None]:
    """Shuffle each weight array of the given layers, and restore the weights on exit."""
    rng = np.random.default_rng(0)
    before = {layer.name: layer.get_weights() for layer in layers}
    try:
        for layer in layers:
            layer.set_weights([rng.permutation(w.ravel()).reshape(w.shape) for w in
                               before[layer.name]])  # fmt: skip
        yield
    finally:
        for layer in layers:
            layer.set_weights(before[layer.name])


def sensitivity_to_weights(
    model: keras.Model, explain: Callable[[], np.ndarray], before: np.ndarray
) -> dict[str, float]:
    """Return the rank correlation between maps before and after weights are shuffled.

    The keys are `last_layer`, for which only the last layer is shuffled, and `all_layers`.
    `explain` computes the maps [N, S, S] of the model in its current state; `before` are the maps
    of the unshuffled model. The values are means over images of |Spearman's rho|, which counts as 0
    if a map is constant.
    """
    layers = [x for x in model.layers if x.weights]
    correlations = {}
    for name, chosen in (("last_layer", layers[-1:]), ("all_layers", layers)):
        with shuffled_weights(model, chosen):
            after = explain()
        correlations[name] = float(
            np.mean([abs(rank_correlation(a, b)) for a, b in zip(before, after, strict=True)])
        )
    return correlations


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rho between two maps; 0 if one of them is constant or not finite."""
    a, b = first.ravel(), second.ravel()
    if np.ptp(a) == 0 or np.ptp(b) == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def share_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the positive heat inside a mask; NaN if there is no positive heat."""
    positive = np.maximum(heat, 0)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else float("nan")


def outside_chest(size: int) -> np.ndarray:
    """Return a mask of the region where no lung is expected: bool [S, S].

    The region is a frame along the border, FRAME of the side wide, and squares of CORNER of the
    side in the corners. It is a crude approximation that needs no segmentation: on a closely
    cropped radiograph the lungs reach into it.
    """
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    frame, corner = edge < FRAME * size, edge < CORNER * size
    return frame[:, None] | frame[None] | (corner[:, None] & corner[None])
