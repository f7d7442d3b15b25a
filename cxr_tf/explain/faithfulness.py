"""How faithful heatmaps are: a pretty one can be wrong.

- Insertion and deletion (Petsiuk, Das and Saenko, "RISE", BMVC 2018, section 4.3): pixels are put
  into a blurred image, or taken out of the plain one, hottest first; the area under the target's
  probability is large for a good map, or small. A map drawn at random is the yardstick.
- Sensitivity to the weights (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018): the
  rank correlation between the map and that of the same model with shuffled weights, first those of
  the last layer alone, then of all. A map that does not change explains nothing.
- On phantoms, whose lesions are known: the pointing game (Zhang et al., "Top-down Neural Attention
  by Excitation Backprop", ECCV 2016), and the share of the heat that lies inside the lesion.
- The share of the heat outside of the chest: in a frame along the border and in the corners, where
  markers and labels are. More than the area's own share is how a shortcut shows.
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

# Outside of the chest: a frame of this share of the side, and squares in the corners.
FRAME, CORNER = 1 / 16, 3 / 16


def insertion_deletion(
    model: keras.Model, *, batch_size: int = 32
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function of images [N, S, S, 3], maps [N, S, S] and targets int [N] for the two areas [N].

    Areas are in 0..1, of the calibrated probability. Deleted pixels become the image's mean grey,
    and inserted ones replace a blur of a twentieth of the side. Both after the standardisation, as
    in occlusion, so that no other pixel changes.
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
        """Of the image whose `limit` first pixels by rank are those of `cover`: [STEPS + 1, C]."""
        plain = network.standardise(image)
        other = network.standardise_as(image, cover)
        weights = network.weights()

        def chunk(rows: tf.Tensor) -> tf.Tensor:
            taken = rank[None] < tf.gather(limits, rows)[:, None, None]
            return network.scores(tf.where(taken[..., None], other, plain), weights)

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
            # Blurring the coldest pixels first is inserting the hottest first, read backwards.
            rising = probabilities(
                images[k : k + 1], blurred[k : k + 1], size * size - 1 - rank
            ).numpy()
            deleted.append(np.trapezoid(falling[:, target], shares))
            inserted.append(np.trapezoid(rising[::-1, target], shares))
        return np.array(inserted), np.array(deleted)

    return areas


def ranks(heat: np.ndarray) -> np.ndarray:
    """Place of each pixel, the hottest 0: int32 [S, S]. Equals are in an order drawn at random.

    Row by row, equals would be a sweep from above, which is a map of its own.
    """
    tie = np.random.default_rng(0).random(heat.size)
    order = np.lexsort((tie, -heat.ravel()))
    place = np.empty(heat.size, np.int32)
    place[order] = np.arange(heat.size, dtype=np.int32)
    return place.reshape(heat.shape)


def random_maps(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Maps that know nothing, as smooth as those of occlusion: float32 [N, S, S], 0 and above."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    return np.maximum(ndimage.gaussian_filter(noise, (0, size / 14, size / 14)), 0).astype(
        np.float32
    )


@contextmanager
def shuffled_weights(model: keras.Model, layers: list[keras.layers.Layer]) -> Iterator[None]:
    """The model with the weights of some layers shuffled, each array in itself; put back after."""
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
    """Rank correlation of maps with those under shuffled weights: of the last layer, and of all.

    `explain` makes the maps [N, S, S] with the model as it is at that moment; `before` are those of
    the unshuffled one. The mean over images of |Spearman's rho|; 0 where a map is constant.
    """
    layers = [x for x in model.layers if x.weights]
    found = {}
    for name, chosen in (("last_layer", layers[-1:]), ("all_layers", layers)):
        with shuffled_weights(model, chosen):
            after = explain()
        found[name] = float(
            np.mean([abs(rank_correlation(a, b)) for a, b in zip(before, after, strict=True)])
        )
    return found


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho of two maps; 0 where one is constant or holds no numbers."""
    a, b = first.ravel(), second.ravel()
    if np.ptp(a) == 0 or np.ptp(b) == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def share_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of the positive heat that lies inside a mask; NaN where there is none."""
    positive = np.maximum(heat, 0)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else float("nan")


def outside_chest(size: int) -> np.ndarray:
    """Where, without a segmentation, no lung is expected: bool [S, S].

    A frame along the border, FRAME of the side wide, and squares of CORNER of the side in the
    corners. A crude stand-in: on a closely cropped radiograph the lungs reach into it.
    """
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    frame, corner = edge < FRAME * size, edge < CORNER * size
    return frame[:, None] | frame[None] | (corner[:, None] & corner[None])
