"""Exact incremental occlusion: only the windows that a patch can change are computed.

Nakandala, Kumar and Papakonstantinou, "Incremental and Approximate Inference for Faster
Occlusion-based Deep CNN Explanations" (Krypton, SIGMOD 2019), here in plain TensorFlow operations
over a flat Keras graph.

The activations of the unoccluded image are computed once. For each occluded patch, the rows and
columns that can differ in each layer are known in advance: those of the patch, extended by a halo
with each convolution and reduced with each stride. All windows of a batch have the size of the
largest, so that a layer processes them in one call. Windows near the border are smaller, because
the map clips them, so patches there form batches of their own (`bands`). Values around a window
come from the unoccluded activation, and from the layer's padding beyond the map. Nothing is
approximated: once windows have grown to the whole map, the computation continues with whole maps.

A window of the common size that would extend over the border is shifted inwards; it then recomputes
some unchanged values, which is harmless.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.models.layer_graph import Network, Step, convolve, is_convolution, plainly, run
from cxr_tf.models.occlusion.windows import Plan, Windows, whole_map

Weights = dict[int, tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Changed:
    """The value of a step with patches covered: the contents of its windows [P, height, width, C].

    `plain` is the unoccluded value [1, H, W, C]. If `windows` is None, the contents are whole maps
    [P, H, W, C], or vectors [P, D].
    """

    plain: tf.Tensor
    windows: Windows | None
    contents: tf.Tensor


def plain_values(network: Network, standardised: tf.Tensor, weights: Weights) -> dict[int, Any]:
    """Return the values of all steps for one standardised, unoccluded image [1, S, S, 3]."""
    values = {id(network.standardised): standardised}
    run(network.after, values, weights)
    return values


def scores(
    network: Network,
    plan: Plan,
    plain: dict[int, Any],
    weights: Weights,
    cover: tf.Tensor,
    rows: tf.Tensor,
    columns: tf.Tensor,
) -> tf.Tensor:
    """Return the scores [P, C] of one image with each of P patches covered.

    plain: from `plain_values`. cover: float32 [1, S, S, 3], the standardised image that patches are
    covered with. rows, columns: int32 [P], positions of the patches in the grid, all in one band of
    its rows and one of its columns.
    """
    covered = {id(network.standardised): cover}
    run(plan.front, covered, weights)

    def at(x: Changed, windows: Windows) -> tf.Tensor:
        if x.windows is None or x.windows.equals(windows):
            return x.contents
        return read(x, windows, rows, columns)

    def call(step: Step, args: Any, kwargs: dict[str, Any]) -> Any:
        planned = plan.planned.get(id(step))
        if planned is None:  # no input has changed
            return plain[id(step.output)]
        plain_output = plain[id(step.output)]
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Changed)]
        x = given[0]

        def on(contents: Any) -> tf.Tensor:
            now_args, now_kwargs = keras.tree.map_structure(
                lambda v: contents(v) if isinstance(v, Changed) else v, (args, kwargs)
            )
            return plainly(step, now_args, now_kwargs, weights)

        if planned.kind == "padding":
            result = x.contents
        elif planned.kind == "average" and x.windows is not None:
            before = read(Changed(x.plain, None, x.plain), x.windows, rows, columns)
            gain = tf.reduce_sum(x.contents - before, [1, 2], keepdims=step.operation.keepdims)
            result = plain_output + gain / (x.plain.shape[1] * x.plain.shape[2])
        elif planned.kind == "local" and planned.reads is not None:
            maximum = isinstance(step.operation, keras.layers.MaxPooling2D)
            padding = -np.inf if maximum else 0.0
            result = _local(step, read(x, planned.reads, rows, columns, padding), weights, maximum)
        elif planned.kind == "pointwise" and planned.reads is not None:
            reads = planned.reads
            result = on(lambda v: at(v, reads))
        else:
            result = on(
                lambda v: v.contents if v.windows is None else at(v, whole_map(v.plain.shape))
            )
        return Changed(plain_output, planned.windows, result)

    front = plain[id(plan.start)]
    patches = read(Changed(covered[id(plan.start)], None, front), plan.patch, rows, columns)
    values = dict(plain)
    values[id(plan.start)] = Changed(front, plan.patch, patches)
    run(plan.rest, values, weights, call)
    return network.as_scores(values[id(network.result)].contents)


def _local(step: Step, x: tf.Tensor, weights: Weights, maximum: bool) -> tf.Tensor:
    if is_convolution(step.operation):
        return convolve(step, x, weights[id(step)], "VALID")
    return tf.nn.pool(
        x,
        step.operation.pool_size,
        "MAX" if maximum else "AVG",
        strides=step.operation.strides,
        padding="VALID",
    )


def read(
    x: Changed, places: Windows, rows: tf.Tensor, columns: tf.Tensor, padding: float = 0.0
) -> tf.Tensor:
    """Return the contents of the maps at `places`: [P, height, width, C].

    Inside its window a value comes from the window, and around it from the unoccluded map; outside
    the map it is `padding`. Without windows, all values come from the unoccluded map. Implemented
    as one gather from a table of the unoccluded pixels, the pixels of the windows, and one pixel of
    padding.
    """
    _, height, width, channels = x.plain.shape
    table = [tf.reshape(x.plain, [-1, channels])]
    size = height * width
    row = _at(places.rows, rows)[:, None] + tf.range(_at(places.heights, rows)[0])
    column = _at(places.columns, columns)[:, None] + tf.range(_at(places.widths, columns)[0])
    index = row[:, :, None] * width + column[:, None, :]
    if (
        places.rows.min() < 0
        or places.columns.min() < 0
        or (places.rows + places.heights).max() > height
        or (places.columns + places.widths).max() > width
    ):
        within = ((row >= 0) & (row < height))[:, :, None]
        within &= ((column >= 0) & (column < width))[:, None, :]
        index = tf.where(within, index, size)
        table.append(tf.fill([1, channels], tf.constant(padding, x.plain.dtype)))
        size += 1
    if x.windows is not None:
        row -= _at(x.windows.rows, rows)[:, None]
        column -= _at(x.windows.columns, columns)[:, None]
        window_height = _at(x.windows.heights, rows)[0]
        window_width = _at(x.windows.widths, columns)[0]
        within = ((row >= 0) & (row < window_height))[:, :, None]
        within &= ((column >= 0) & (column < window_width))[:, None, :]
        patch = tf.range(tf.shape(row)[0])[:, None, None]
        offset = (patch * window_height + row[:, :, None]) * window_width + column[:, None, :]
        index = tf.where(within, size + offset, index)
        table.append(tf.reshape(x.contents, [-1, channels]))
    pixels = tf.gather(tf.concat(table, axis=0) if len(table) > 1 else table[0], index)
    sides = [int(s[0]) if len(set(s)) == 1 else None for s in (places.heights, places.widths)]
    return tf.ensure_shape(pixels, [None, *sides, channels])


def _at(values: np.ndarray, places: tf.Tensor) -> tf.Tensor:
    """Select one of the values [G] for each patch; a single value applies to every patch."""
    if len(values) == 1:
        return tf.fill(tf.shape(places), tf.constant(values[0], tf.int32))
    return tf.gather(tf.constant(values, tf.int32), places)
