"""Occlusion: cover each patch in turn and measure how far the probability drops.

    grid = make_grid(224)                                  # patch 32, stride 16
    occluder = make_occluder(model, grid, batch_size=64)   # incremental if that is faster
    function = compiled(occluder)
    covers = cover_images(images, "air", grid.patch)       # the fill of the patches
    plain, covered = function(images, covers, all_places(grid))
    drops = drop(plain, covered, target=[1], kind="probability")   # float32 [N, P]
    maps = heatmaps(grid, drops)                           # float32 [N, S, S]

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), section 4.2.

Covering. The classifiers standardise each image inside their graph. Covering a patch before that
would change the exposure of all other pixels; it is covered afterwards, with the statistics of the
plain image, so that only the patch changes.

Fill. The fill determines what the map shows. The mean grey of the image looks like a consolidation
on a lung: covering an opacity with it changes nothing, and covering healthy lung adds an opacity.
On phantoms the maps of `mean` for pneumonia never pointed at the lesion. The default, `auto`,
therefore covers with what would be there in the absence of the target: `air`, the grey of aerated
lung, for a pneumonia, and the mean for `normal`, whose evidence is clear lungs.

Positions. Patches form a regular grid of `stride` from the upper left corner; if the last one
would leave a border uncovered, another is flush with it. The heatmap at a pixel is the mean drop
over the patches that cover it. A negative drop (covering raises the probability) stays negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.models.layer_graph import Network, read_network
from cxr_tf.models.occlusion import incremental, windows

FILLS = ("auto", "mean", "air", "gray", "blur", "noise")

# Classes whose radiographic sign is an opacity in the lungs.
OPACITIES = ("pneumonia", "bacterial", "viral")

# The incremental method also gathers windows, which the count of multiplications does not include:
# above this share of the plain method's multiplications it is not faster.
LARGEST_SHARE = 0.8


@dataclass(frozen=True)
class Grid:
    """Patches of `patch` pixels on images of `size` pixels, both square, `stride` apart."""

    size: int
    patch: int
    stride: int

    @property
    def starts(self) -> np.ndarray:
        """First row (and column) of the patches, int64 [G]; the last is flush with the border."""
        last = self.size - self.patch
        starts = np.arange(0, last + 1, self.stride)
        return starts if starts[-1] == last else np.append(starts, last)

    @property
    def count(self) -> int:
        """Number of patches, P = G * G."""
        return len(self.starts) ** 2

    @property
    def coverage(self) -> np.ndarray:
        """Whether each row of patches covers each row of pixels: float32 [S, G], 1 or 0."""
        rows = np.arange(self.size)[:, None] - self.starts[None]
        return ((rows >= 0) & (rows < self.patch)).astype(np.float32)


def make_grid(size: int, patch: int | None = None, stride: int | None = None) -> Grid:
    """Make a grid; by default the stride is a fourteenth of the side, and the patch two strides.

    At 224 pixels that is patch 32, stride 16. Raises UserError for a patch larger than the image,
    a stride of 0, or a stride larger than the patch, which would leave pixels uncovered.
    """
    if patch is not None and not 1 <= patch <= size:
        raise UserError(
            f"--patch must be between 1 and {size}, the side of the model's input, not {patch}"
        )
    if stride is None:
        stride = max(1, round(size / 14) if patch is None else patch // 2)
    if stride < 1:
        raise UserError(f"--stride must be at least 1, not {stride}")
    if patch is None:
        if stride > size:
            raise UserError(
                f"--stride {stride} is larger than the side of the model's input, {size}"
            )
        patch = min(2 * stride, size)
    if stride > patch:
        raise UserError(
            f"--stride {stride} is larger than --patch {patch}: pixels between the patches would "
            "never be covered"
        )
    return Grid(size, patch, stride)


def all_places(grid: Grid) -> np.ndarray:
    """Return the numbers of all patches, row by row: int32 [P]."""
    return np.arange(grid.count, dtype=np.int32)


def cover_images(
    images: np.ndarray,
    fill: str,
    patch: int,
    *,
    opaque: np.ndarray | bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Return the fill of the patches as whole images: float32 [N, S, S, 3] in 0..255.

    images: float32 [N, S, S, 3] in 0..255, three equal channels. The fill `mean` is each image's
    mean grey; `air` is one standard deviation below it, about the grey of aerated lung; `auto` is
    `air` if the target is an opacity (`opaque`, bool or bool [N], from `is_opacity`), otherwise
    `mean`; `gray` is the middle of the scale; `blur` is the image blurred with a standard deviation
    of half a patch; `noise` is drawn pixel by pixel with the image's mean and standard deviation.
    """
    mean, spread = images.mean((1, 2, 3), keepdims=True), images.std((1, 2, 3), keepdims=True)
    if fill in ("auto", "mean", "air"):
        darker = np.reshape(opaque if fill == "auto" else fill == "air", (-1, 1, 1, 1))
        return np.broadcast_to(np.where(darker, mean - spread, mean), images.shape)
    if fill == "gray":
        return np.full_like(images, 127.5)
    if fill == "blur":
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(images, (0, patch / 2, patch / 2, 0), mode="nearest")
    if fill == "noise":
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((*images.shape[:3], 1), np.float32)
        return np.broadcast_to(np.clip(mean + spread * noise, 0, 255), images.shape)
    raise UserError(f"unknown fill '{fill}'; known: {', '.join(FILLS)}")


def is_opacity(classes: Sequence[str]) -> np.ndarray:
    """Return for each class whether `auto` covers it with air: bool [C]."""
    return np.array([name.lower() in OPACITIES for name in classes])


@dataclass(frozen=True)
class Occluder:
    """A network with a grid of patches; `plan` is None for the plain method."""

    network: Network
    grid: Grid
    plan: windows.Plan | None
    batch_size: int

    def __call__(
        self, images: tf.Tensor, covers: tf.Tensor, places: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the scores of the plain images [N, C], and with each patch covered [N, K, C].

        images, covers: float32 [N, S, S, 3] in 0..255. places: int32 [K], numbers of patches, the
        same for all images. The softmax of scores is the calibrated probability. TensorFlow
        operations only; at most `batch_size` covered images are in memory at once.
        """
        network = self.network
        weights = network.weights()
        standardised = network.standardise(images)
        cover = network.standardise_as(images, covers)
        count, patches = tf.shape(images)[0], tf.shape(places)[0]
        if self.plan is None:
            plain = network.scores(standardised, weights)
            covered = self._plain(standardised, cover, places, weights)
            return plain, tf.reshape(covered, [count, patches, network.classes])
        plan = self.plan
        order, splits = self._batches(places, plan.bands)

        def of_image(pair: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            values = incremental.plain_values(network, pair[0][None], weights)

            def chunk(numbers: tf.Tensor) -> tf.Tensor:
                row, column = self._rows_columns(tf.gather(places, tf.gather(order, numbers)))
                return incremental.scores(
                    network, plan, values, weights, pair[1][None], row, column
                )

            plain = network.as_scores(values[id(network.result)])[0]
            covered = in_chunks(chunk, splits, network.classes)
            return plain, tf.gather(covered, tf.math.invert_permutation(order))

        return tf.map_fn(
            of_image,
            (standardised, cover),
            parallel_iterations=1,
            fn_output_signature=(
                tf.TensorSpec([network.classes], tf.float32),
                tf.TensorSpec([None, network.classes], tf.float32),
            ),
        )

    def _plain(
        self, standardised: tf.Tensor, cover: tf.Tensor, places: tf.Tensor, weights: dict
    ) -> tf.Tensor:
        """Return the scores [N * K, C] of all pairs of image and patch, in full batches."""
        patches = tf.shape(places)[0]
        coverage = tf.constant(self.grid.coverage.T)

        def chunk(pairs: tf.Tensor) -> tf.Tensor:
            image = pairs // patches
            row, column = self._rows_columns(tf.gather(places, pairs % patches))
            covered = tf.gather(coverage, row)[:, :, None] * tf.gather(coverage, column)[:, None]
            x = tf.where(
                covered[..., None] > 0, tf.gather(cover, image), tf.gather(standardised, image)
            )
            return self.network.scores(x, weights)

        total = tf.shape(standardised)[0] * patches
        return in_chunks(chunk, equal_splits(total, self.batch_size), self.network.classes)

    def _batches(self, places: tf.Tensor, bands: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the order in which patches are computed, int32 [K], and the bounds of the batches.

        A batch contains patches of one band of rows and one band of columns only.
        """
        band = tf.constant(bands, tf.int32)
        row, column = self._rows_columns(places)
        number = windows.BANDS * tf.gather(band, row) + tf.gather(band, column)
        order = tf.argsort(number, stable=True)
        number, count = tf.gather(number, order), tf.size(order)
        within = tf.range(count) - tf.searchsorted(number, number)
        begins = (within % self.batch_size == 0) & (tf.range(count) > 0)
        ends = tf.cast(tf.where(begins)[:, 0], tf.int32)
        return order, tf.concat([[0], ends, [count]], axis=0)

    def _rows_columns(self, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        side = len(self.grid.starts)
        return places // side, places % side


def make_occluder(
    model: keras.Model, grid: Grid, *, batch_size: int = 64, way: str = "auto"
) -> Occluder:
    """Make an occluder of a flat float32 classifier; it shares the model's variables.

    `way`: `plain` runs each covered image through the whole network; `incremental` recomputes only
    what a patch can change; `auto` is `incremental` if that saves at least a fifth of the
    multiplications. The results are equal.
    """
    network = read_network(model)
    if grid.size != network.size:
        raise ValueError(f"the grid is for {grid.size} pixels, the model for {network.size}")
    plan = None
    if way != "plain":
        plan = windows.make_plan(network, grid.starts, grid.patch)
        if way == "auto" and plan.share > LARGEST_SHARE:
            plan = None
    return Occluder(network, grid, plan, batch_size)


def compiled(occluder: Occluder) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Trace the occluder as one function, for any number of images and patches."""
    size = occluder.grid.size
    images = tf.TensorSpec([None, size, size, 3], tf.float32)
    return tf.function(
        occluder.__call__,
        input_signature=[images, images, tf.TensorSpec([None], tf.int32)],
        autograph=False,
    )


def equal_splits(total: tf.Tensor, largest: int) -> tf.Tensor:
    """Split 0..total-1 into equal chunks of up to `largest`; return bounds, int32 [chunks + 1]."""
    chunks = tf.maximum((total + largest - 1) // largest, 1)
    size = (total + chunks - 1) // chunks
    return tf.minimum(tf.range(chunks + 1) * size, total)


def in_chunks(
    function: Callable[[tf.Tensor], tf.Tensor], splits: tf.Tensor, width: int
) -> tf.Tensor:
    """Call `function` with the row numbers of each chunk, splits[k] to splits[k + 1] - 1.

    `function` maps row numbers int32 [B] to float32 [B, width]. Returns the concatenated results;
    one chunk is in memory at a time.
    """
    chunks = tf.size(splits) - 1
    results = tf.TensorArray(
        tf.float32, size=chunks, element_shape=[None, width], infer_shape=False
    )

    def step(number: tf.Tensor, written: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        rows = tf.range(splits[number], splits[number + 1])
        return number + 1, written.write(number, function(rows))

    _, results = tf.while_loop(
        lambda number, _: number < chunks,
        step,
        (tf.constant(0), results),
        parallel_iterations=1,
    )
    return results.concat()


def drop(plain: tf.Tensor, covered: tf.Tensor, target: tf.Tensor, kind: str) -> tf.Tensor:
    """Return the drop of the target's probability or log odds for each patch: float32 [N, K].

    plain: scores [N, C]; covered: scores [N, K, C]; target: int [N]. `probability` is the drop of
    the calibrated probability. `logit` is the drop of log(p / (1 - p)), in nats, which still
    changes where a probability of 0.999 does not.
    """
    target = tf.convert_to_tensor(target)
    return _measure(plain[:, None], target, kind) - _measure(covered, target, kind)


def _measure(scores: tf.Tensor, target: tf.Tensor, kind: str) -> tf.Tensor:
    """Map scores [N, K, C] to the probability or log odds of the target, [N, K]."""
    if kind == "probability":
        return tf.gather(tf.nn.softmax(scores), target, axis=2, batch_dims=1)
    of_target = tf.gather(scores, target, axis=2, batch_dims=1)
    chosen = tf.one_hot(target, scores.shape[-1], on_value=-np.inf, off_value=0.0)[:, None]
    return of_target - tf.reduce_logsumexp(scores + chosen, axis=2)


def heatmaps(grid: Grid, drops: tf.Tensor) -> tf.Tensor:
    """Average drops [N, P] over the patches that cover each pixel: float32 [N, S, S]."""
    side = len(grid.starts)
    means = grid.coverage / grid.coverage.sum(axis=1, keepdims=True)
    square = tf.reshape(tf.cast(drops, tf.float32), [-1, side, side])
    return tf.einsum("yi,nij,xj->nyx", tf.constant(means), square, tf.constant(means))


def heatmaps_of(
    occluder: Occluder, images: tf.Tensor, target: tf.Tensor, classes: Sequence[str]
) -> tf.Tensor:
    """Return the default heatmap [N, S, S]: fill `auto`, drop of the probability of `target`.

    TensorFlow operations only, for a SavedModel.
    """
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    spread = tf.math.reduce_std(images, axis=[1, 2, 3], keepdims=True)
    opaque = tf.gather(tf.constant(is_opacity(classes)), target)[:, None, None, None]
    covers = tf.broadcast_to(tf.where(opaque, mean - spread, mean), tf.shape(images))
    plain, covered = occluder(images, covers, tf.constant(all_places(occluder.grid)))
    return heatmaps(occluder.grid, drop(plain, covered, target, "probability"))


def coarse_places(grid: Grid) -> np.ndarray:
    """Return the numbers of the patches of a coarser grid that still covers every pixel.

    It consists of rows and columns whose patches just touch, and of the last row and column.
    """
    rows = _coarse_rows(grid)
    return (rows[:, None] * len(grid.starts) + rows[None]).ravel().astype(np.int32)


def _coarse_rows(grid: Grid) -> np.ndarray:
    rows = np.arange(0, len(grid.starts), max(1, grid.patch // grid.stride))
    return np.union1d(rows, [len(grid.starts) - 1])


def places_to_refine(grid: Grid, coarse: np.ndarray, share: float) -> np.ndarray:
    """Return the numbers of the `share` of patches whose interpolated drop is largest.

    coarse: drops of `coarse_places`, float [Q]. The coarse patches themselves are not returned.
    """
    estimate = interpolate(grid, coarse)
    done = coarse_places(grid)
    others = np.setdiff1d(all_places(grid), done)
    count = min(len(others), round(share * grid.count))
    hottest = np.argsort(-estimate[others], kind="stable")[:count]
    return np.sort(others[hottest]).astype(np.int32)


def interpolate(grid: Grid, coarse: np.ndarray) -> np.ndarray:
    """Interpolate the drops of all patches [P] bilinearly from those of the coarse ones [Q]."""
    rows = _coarse_rows(grid)
    square = coarse.reshape(len(rows), len(rows))
    every = np.arange(len(grid.starts))
    down = np.stack([np.interp(every, rows, column) for column in square.T], axis=1)
    return np.stack([np.interp(every, rows, row) for row in down]).ravel()
