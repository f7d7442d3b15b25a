"""Planning of the window of each feature map that an occluding patch can change."""

from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np

from cxr_tf.models.layer_graph import Network, Step, is_convolution

# Layers that work elementwise, so that a window can be treated like a map.
_POINTWISE_LAYERS = (
    keras.layers.Add,
    keras.layers.BatchNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.Rescaling,
)

_POINTWISE_OPERATIONS = ("Add", "Subtract", "Multiply", "TrueDivide", "Divide")

# At most BANDS bands, and one for every ROWS_OF_A_BAND rows: small batches cost more per patch than
# the smaller windows at the border save. Below the image size SMALLEST_WITH_BANDS, bands never pay.
BANDS, ROWS_OF_A_BAND, SMALLEST_WITH_BANDS = 3, 4, 160


@dataclass(frozen=True)
class Windows:
    """Windows in which a map [N, H, W, C] can differ from its plain value, for each patch.

    rows, heights: int [G], first row and height of the window for each row of the grid of patches,
    or [1], the same for all. columns, widths: the same for its columns.
    """

    rows: np.ndarray
    columns: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def equals(self, other: "Windows") -> bool:
        """Return whether `other` has the same windows."""
        return all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def cover(self, shape: Any) -> bool:
        """Return whether every window covers a whole map [N, H, W, C]."""
        return bool(self.heights.min() >= shape[1] and self.widths.min() >= shape[2])

    def share(self, shape: Any) -> float:
        """Return the mean share of a map [N, H, W, C] that the windows cover."""
        return float(self.heights.mean() * self.widths.mean() / (shape[1] * shape[2]))


@dataclass(frozen=True)
class Planned:
    """The plan of a step: how it treats changed inputs, and where its output can differ.

    `kind` is one of: local (convolution, pooling), pointwise, padding, average, whole. `windows` is
    None if the whole output is computed. `reads` are, for local and pointwise steps, the windows of
    the inputs that are read; they may extend into the padding.
    """

    kind: str
    windows: Windows | None
    reads: Windows | None = None


@dataclass(frozen=True)
class Plan:
    """The plan for a grid of patches in a network, made before any value is computed.

    `bands` is the band of each row (column) of the grid, int [G]; see `bands()`.
    `front` steps work pixel by pixel (the backbone's preprocessing) and run on whole images;
    `start` is the tensor after them, `rest` are the steps that follow. `share` is the fraction of
    the plain method's multiplications that the plan needs.
    """

    bands: np.ndarray
    front: tuple[Step, ...]
    start: Any
    rest: tuple[Step, ...]
    patch: Windows
    planned: dict[int, Planned]
    share: float


def bands(count: int, size: int) -> np.ndarray:
    """Return the band of each row (column) of a grid by its distance from the border: int [count].

    Patches in one band of rows and one of columns share a batch. size: side of the images.
    """
    number = np.arange(count)
    wanted = min(BANDS, max(1, count // ROWS_OF_A_BAND)) if size >= SMALLEST_WITH_BANDS else 1
    return wanted * np.minimum(number, count - 1 - number) // ((count + 1) // 2)


def make_plan(
    network: Network, starts: np.ndarray, patch: int, band: np.ndarray | None = None
) -> Plan:
    """Plan for patches of one size at every pair of `starts` (int [G], the grid's rows).

    band: the band of each row of the grid, int [G]; default: `bands()` for the size of the images.
    """
    split = _front(network)
    front, rest = network.after[:split], network.after[split:]
    start = front[-1].output if front else network.standardised
    band = bands(len(starts), network.size) if band is None else band
    sizes = np.full(len(starts), patch)
    window = Windows(starts, starts, sizes, sizes)
    where: dict[int, Windows | None] = {id(start): window}
    planned: dict[int, Planned] = {}
    needed = total = 0.0
    for step in rest:
        changed = [x for x in step.inputs if id(x) in where]
        if not changed:
            continue
        plan = _plan_step(step, changed, where, band)
        windows = plan.windows
        shape = step.output.shape
        if windows and windows.cover(shape):
            plan = Planned(plan.kind, None, plan.reads)
        planned[id(step)] = plan
        where[id(step.output)] = plan.windows
        cost = step.multiplications
        total += cost
        if windows and len(shape) == 4:
            cost *= windows.share(shape)
        needed += cost
    return Plan(band, front, start, rest, window, planned, needed / max(total, 1.0))


def _plan_step(
    step: Step, changed: list[Any], where: dict[int, Windows | None], band: np.ndarray
) -> Planned:
    given = [where[id(x)] for x in changed]
    if not any(given) or len(changed) < len(step.inputs):
        return Planned("whole", None)
    first = given[0]
    if len(changed) == 1 and first is not None:
        if isinstance(step.operation, keras.layers.ZeroPadding2D):
            (top, _), (left, _) = step.operation.padding
            return Planned(
                "padding",
                Windows(first.rows + top, first.columns + left, first.heights, first.widths),
            )
        if isinstance(step.operation, keras.layers.GlobalAveragePooling2D):
            return Planned("average", None)
        if is_local(step.operation):
            return Planned("local", *_local_windows(step, first, band))
    if is_pointwise(step):
        shape = changed[0].shape
        shared = _union([w or whole_map(shape) for w in given], shape, band)
        return Planned("pointwise", shared, shared)
    # In all other steps every output may depend on every input.
    return Planned("whole", None)


def _local_windows(step: Step, windows: Windows, band: np.ndarray) -> tuple[Windows, Windows]:
    """Return the output windows of a convolution or pooling, and the input windows it reads."""
    operation = step.operation
    kernel = operation.kernel_size if is_convolution(operation) else operation.pool_size
    source, target = step.inputs[0].shape, operation.output.shape
    written, read = [], []
    for axis, (first, size) in enumerate(
        ((windows.rows, windows.heights), (windows.columns, windows.widths))
    ):
        length, out_length = source[axis + 1], target[axis + 1]
        k, s = kernel[axis], operation.strides[axis]
        pad = 0
        if operation.padding == "same":
            # TensorFlow puts the odd row of padding at the end.
            pad = max((out_length - 1) * s + k - length, 0) // 2
        # Output o reads the inputs from o * s - pad to o * s - pad + k - 1.
        low = np.clip(-((k - 1 - pad - first) // s), 0, out_length - 1)
        high = np.clip((first + size - 1 + pad) // s, low, out_length - 1)
        out_size = _common(high - low + 1, band)
        out_first = np.clip(low, 0, out_length - out_size)
        written.append((out_first, out_size))
        read.append((out_first * s - pad, (out_size - 1) * s + k))
    return (
        Windows(written[0][0], written[1][0], written[0][1], written[1][1]),
        Windows(read[0][0], read[1][0], read[0][1], read[1][1]),
    )


def _common(sizes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Return, for each size, the largest size in its band; a single size applies to all."""
    return sizes if len(sizes) == 1 else np.array([sizes[band == b].max() for b in band])


def _union(parts: list[Windows], shape: Any, band: np.ndarray) -> Windows:
    """Return the smallest common windows that contain all given ones, on a map of this shape."""
    union = []
    for length, firsts, sizes in (
        (shape[1], [w.rows for w in parts], [w.heights for w in parts]),
        (shape[2], [w.columns for w in parts], [w.widths for w in parts]),
    ):
        starts = np.broadcast_arrays(*firsts)
        low = np.min(starts, axis=0)
        high = np.max([a + n for a, n in zip(starts, sizes, strict=True)], axis=0)
        size = np.minimum(_common(high - low, band), length)
        union.append((np.clip(low, 0, length - size), size))
    return Windows(union[0][0], union[1][0], union[0][1], union[1][1])


def whole_map(shape: Any) -> Windows:
    """Return one window that covers a map of this shape."""
    zero = np.zeros(1, np.int64)
    return Windows(zero, zero, np.array([shape[1]]), np.array([shape[2]]))


def is_local(operation: Any) -> bool:
    """Return whether a window of this convolution or pooling can be computed separately."""
    if is_convolution(operation):
        return True
    # Padded average pooling averages fewer values at the border; no backbone here has it.
    return (
        isinstance(operation, keras.layers.MaxPooling2D)
        or (isinstance(operation, keras.layers.AveragePooling2D) and operation.padding == "valid")
    ) and operation.data_format == "channels_last"


def is_pointwise(step: Step) -> bool:
    """Return whether each output value depends only on the inputs at the same position."""
    operation = step.operation
    if isinstance(operation, _POINTWISE_LAYERS):
        return getattr(operation, "axis", -1) in (-1, 3)
    if isinstance(operation, keras.layers.Normalization):
        return tuple(operation.axis or ()) in ((-1,), (3,))
    if isinstance(operation, keras.Layer) or len(step.inputs) != 1:
        return False
    if type(operation).__name__ not in _POINTWISE_OPERATIONS:
        return False
    constants = [x for x in step.args if not isinstance(x, keras.KerasTensor)]
    # A number, or one per channel; anything larger varies with the position.
    return all(all(n == 1 for n in np.shape(x)[:-1]) for x in constants)


def _front(network: Network) -> int:
    """Return how many steps after the standardisation work pixel by pixel."""
    split = 0
    for number, step in enumerate(network.after):
        if not (is_pointwise(step) or _moves_channels_only(step)):
            break
        split = number + 1
    # The steps that follow may read only the last tensor of the front.
    while split:
        inner = {id(s.output) for s in network.after[: split - 1]} | {id(network.standardised)}
        if not any(id(x) in inner for s in network.after[split:] for x in s.inputs):
            break
        split -= 1
    return split


def _moves_channels_only(step: Step) -> bool:
    """Return whether a step selects a channel or stacks channels, as Keras's RGB to BGR does."""
    name = type(step.operation).__name__
    if name == "GetItem":
        key = step.args[1] if len(step.args) > 1 else step.kwargs.get("key")
        return isinstance(key, (tuple, list)) and len(key) == 2 and key[0] is Ellipsis
    return name == "Stack" and step.operation.axis == -1
