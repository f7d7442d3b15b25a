"""Catalogue -> `tf.data` batches: decode, resize, cache, augment, batch.

    images, unreadable = load_images(catalog.paths, size=224)        # uint8 [N, 224, 224, 1]
    for images, labels in training_batches(images, labels, ...):     # float32 [B, 224, 224, 3]

Everything is decoded once, to 8 bits at the size that the model takes, and kept: the later epochs
cost a copy and the augmentation. `decode_radiograph` is also the first op of every exported
SavedModel, so that a served image passes through the very same arithmetic, rounding included.
"""

import functools
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Random numbers that an augmentation takes.
AUGMENTATION_DRAWS = 14

# Flat-panel detectors have up to 19 megapixels, scanned film some more. While it is decoded an
# image takes about 20 bytes a pixel, and a file of a kilobyte can claim to be of any size.
LARGEST_MEGAPIXELS = 50

# Enlarged to the model's size such an image is a blank, and a blank gets a number like any image.
SMALLEST_SIDE = 16

# What can be wrong with a file, by number and in words.
FINE, EMPTY, UNKNOWN, LARGE, SMALL, CORRUPT = range(6)
FAULTS = (
    "",
    "empty",
    "neither JPEG nor PNG",
    f"more than {LARGEST_MEGAPIXELS} megapixels",
    f"a side of less than {SMALLEST_SIDE} pixels",
    "truncated or corrupt image",
)

# Width and height of what is shown are scaled by up to this, as a logarithm; and under stress.
FRAMING, WIDEST_FRAMING = 0.15, 0.2

# For what a tf.data stream calls: autograph would translate its source and find nothing to do.
as_written = tf.autograph.experimental.do_not_convert

# Files or batches that are prepared at a time.
PARALLEL = min(os.cpu_count() or 2, 16)

# Above this the decoded images live in a file without a name instead of in memory.
LARGEST_IN_MEMORY = 4 * 1024**3


def decode_radiograph(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """JPEG or PNG bytes (scalar string) -> uint8 [size, size, 1].

    Colour is turned to luminance, transparency dropped, 16-bit PNGs read by their upper byte. The
    image is squashed to the square with an antialiased bilinear filter, not cropped or padded:
    aspect ratio differs between the classes of the Kermany data, and a border would show it.
    """
    image, sides, is_gray = tf.cond(
        _is_jpeg(encoded), lambda: _decode_jpeg(encoded, size), lambda: _decode_other(encoded)
    )
    # What `tf.image.resize` calls, which would take the sides for whole numbers. Before the
    # luminance: both are linear, and at full size that costs as much as the decoding.
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[size, size],
        scale=size / sides,
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )[0]
    gray = tf.cond(
        is_gray,
        lambda: resized,
        lambda: tf.image.rgb_to_grayscale(tf.ensure_shape(resized, [size, size, 3])),
    )
    return tf.saturate_cast(tf.round(tf.ensure_shape(gray, [size, size, 1])), tf.uint8)


def _is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"


def _decode_jpeg(encoded: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """JPEG bytes (scalar string) -> uint8 [H, W, 1 or 3], its sides, float32 [2], if it is gray.

    A large image is shrunk on the way: the decoder can leave out the fine frequencies of each
    block, which is a low-pass of its own and saves most of the resizing. It stops at twice `size`
    on the shorter side, and the antialiased filter does the rest; pixels differ by a fraction of a
    grey level in the mean (Pillow's `thumbnail` does the same, by its `reducing_gap` of 2). Sides
    of the shrunk image that are no whole numbers are rounded up by the decoder; the true ones are
    returned.
    """
    header = tf.image.extract_jpeg_shape(encoded)
    sides = header[:2]
    ratios = tf.constant([1, 2, 4, 8])  # those that libjpeg offers
    which = tf.reduce_sum(tf.cast(tf.reduce_min(sides) // (2 * size) >= ratios[1:], tf.int32))

    def decode(ratio: int) -> tf.Tensor:
        # As many channels as the file has, or three for one of four (CMYK). Accurately, because
        # TensorFlow's default is half a grey level darker, and at a ratio of 1 only.
        return tf.io.decode_jpeg(encoded, channels=0, ratio=ratio, dct_method="INTEGER_ACCURATE")

    image = tf.switch_case(which, [functools.partial(decode, r) for r in (1, 2, 4, 8)])
    shrunk = tf.cast(sides, tf.float32) / tf.cast(ratios[which], tf.float32)
    # By the header and not by the shape of the image: TensorFlow's constant folding takes the
    # static shape of one branch, the three channels of a PNG, for that of both.
    return image, shrunk, header[2] == 1


def _decode_other(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The same of a PNG, in three channels."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return image, tf.cast(tf.shape(image)[:2], tf.float32), tf.constant(False)


def header_fault(encoded: tf.Tensor) -> tf.Tensor:
    """What is wrong with a file (scalar string) by its header: int32, one of the faults.

    Fails, as decoding would, on a JPEG whose header is damaged.
    """
    length = tf.strings.length(encoded)
    is_jpeg = _is_jpeg(encoded)
    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    # PNG, 11.2.2: width and height stand first in the first chunk, as big-endian integers.
    has_sides = tf.logical_and(is_png, length >= 24)

    def png_sides() -> tf.Tensor:
        digits = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8)
        digits = tf.cast(tf.reshape(digits, [2, 4]), tf.int64)
        return tf.reduce_sum(digits * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64), axis=1)

    sides = tf.cond(
        is_jpeg,
        lambda: tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64),
        lambda: tf.cond(has_sides, png_sides, lambda: tf.zeros([2], tf.int64)),
    )
    found = tf.where(tf.reduce_min(sides) < SMALLEST_SIDE, SMALL, FINE)
    # In float64, because the product of two such numbers can exceed an int64 and come out small.
    pixels = tf.reduce_prod(tf.cast(sides, tf.float64))
    found = tf.where(pixels > LARGEST_MEGAPIXELS * 1e6, LARGE, found)
    found = tf.where(tf.logical_and(is_png, length < 24), CORRUPT, found)
    found = tf.where(tf.logical_or(is_jpeg, is_png), found, UNKNOWN)
    return tf.where(length == 0, EMPTY, found)


def load_images(paths: Sequence[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes files in parallel.

    Returns uint8 [N, size, size, 1] in the order of `paths`, and {row: reason} for files that
    cannot be read, whose rows are zero. What an exported model refuses (see `header_fault`) is
    refused here too, so that nothing is learnt from what cannot be asked about.
    """
    images = _allocate((len(paths), size, size, 1))
    faults = np.full(len(paths), CORRUPT)
    files = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), list(paths)))
    # A file that cannot be decoded drops out here; its missing row number tells which it was.
    decoded = files.map(_reader(size), num_parallel_calls=PARALLEL).ignore_errors().batch(64)
    for rows, found, batch in ahead(decoded).as_numpy_iterator():
        images[rows], faults[rows] = batch, found
    reasons = {int(row): FAULTS[faults[row]] for row in np.flatnonzero(faults != FINE)}
    for row in np.flatnonzero(faults == CORRUPT).tolist():
        if not os.access(paths[row], os.R_OK):
            exists = os.path.exists(paths[row])
            reasons[row] = "no permission to read it" if exists else "no such file"
    return images, reasons


@functools.cache
def _reader(size: int) -> tf.types.experimental.GenericFunction:
    """(row, path) -> (row, fault, image uint8 [size, size, 1]); traced once for all lists."""

    def read(row: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        fault = header_fault(encoded)
        image = tf.cond(
            fault == FINE,
            lambda: decode_radiograph(encoded, size),
            lambda: tf.zeros([size, size, 1], tf.uint8),
        )
        return row, fault, image

    given = [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)]
    return tf.function(read, input_signature=given, autograph=False)


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epochs: range,
    strength: float = 1.0,
) -> tf.data.Dataset:
    """Training batches of some epochs: (float32 [B, S, S, 3] in 0..255, int64 [B]).

    Each epoch of `epochs` is a fresh permutation, and each image a fresh augmentation, both drawn
    from (seed, epoch, row) alone: a run resumed at epoch 7 sees what it would have seen. The last,
    incomplete batch of an epoch is dropped; see `steps_per_epoch`.
    """
    n = len(labels)
    steps = steps_per_epoch(n, batch_size)
    size = images.shape[1]

    @as_written
    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        rows = tf.random.experimental.stateless_shuffle(
            tf.range(n, dtype=tf.int64), seed=epoch_seed
        )[: steps * batch_size]
        # Drawn by row, so that neither order nor batch size changes what an image becomes.
        draws = tf.gather(augmentation_draws(n, epoch_seed), rows)
        return tf.data.Dataset.from_tensor_slices((rows, draws)).batch(batch_size)

    @as_written
    def gather(rows: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(lambda r: images[r], [rows], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [batch_size, size, size, 1])
        return batch, draws, tf.gather(tf.constant(labels, tf.int64), rows)

    @as_written
    def finish(batch: tf.Tensor, draws: tf.Tensor, target: tf.Tensor) -> tuple:
        return to_rgb(augment(batch, draws, strength)), target

    stream = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(order)
    stream = stream.map(gather, num_parallel_calls=2)
    return ahead(stream.map(finish, num_parallel_calls=PARALLEL))


def evaluation_batches(
    images: np.ndarray, *, batch_size: int, stress_seed: int | None = None, strength: float = 2.5
) -> tf.data.Dataset:
    """All images in order: float32 [B, S, S, 1] in 0..255; the last batch may be smaller.

    One channel, because to write three of the same takes longer than all the rest;
    `training.compiled` has the network's graph do it. With `stress_seed` every image is augmented,
    the same way each time, at `strength`: a stand-in for images of another hospital, on which a
    nearly separable validation set still ranks models.
    """
    size = images.shape[1]
    draws = None
    if stress_seed is not None:
        draws = augmentation_draws(len(images), tf.constant([stress_seed, -1], tf.int64))

    @as_written
    def gather(rows: tf.Tensor) -> tf.Tensor:
        batch = tf.numpy_function(lambda r: images[r], [rows], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [None, size, size, 1])
        if draws is None:
            return tf.cast(batch, tf.float32)
        return augment(batch, tf.gather(draws, rows), strength)

    rows = tf.data.Dataset.range(len(images)).batch(batch_size)
    return ahead(rows.map(gather, num_parallel_calls=PARALLEL))


def ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, prepared while the one before is in use; without tf.data's own tuning.

    The thread that tunes (AUTOTUNE) may miss that an iterator is let go, which then waits for the
    thread's next turn. Turns are twice as far apart each time, so that a pass over validation took
    up to twice its time (seen in four of ten with TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in an epoch; at least one is needed."""
    return count // batch_size


def to_rgb(gray: tf.Tensor) -> tf.Tensor:
    """[..., 1] -> float32 [..., 3], three equal channels, the input of the backbones."""
    gray = tf.cast(gray, tf.float32)
    return tf.concat([gray, gray, gray], axis=-1)


def augmentation_draws(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Random numbers that decide an epoch's augmentations: float32 [count, 14] in -1..1."""
    return tf.random.stateless_uniform([count, AUGMENTATION_DRAWS], seed, -1.0, 1.0)


def augment(
    images: tf.Tensor, draws: tf.Tensor, strength: float = 1.0, *, framing: float = FRAMING
) -> tf.Tensor:
    """Random exposure, position and cutout of whole batches, without a Python loop over images.

    images: uint8 or float32 [B, S, S, 1] in 0..255. draws: float32 [B, 14] in -1..1, which alone
    decide what happens to each. strength scales every range, that of the framing to 22 % at most.
    framing: how far width and height are scaled, as a logarithm. Returns float32 [B, S, S, 1].

    At strength 1: rotation up to 4 degrees; width and height scaled apart by up to 16 %; shift up
    to 4 %; gamma 0.79 to 1.27; contrast and brightness up to 12 %; fine detail (what a 3x3 blur
    takes away) 0.2 to 1.8 times; 3 in 10 images lose a square of 10 to 30 % of the side. No flips:
    the heart has a side, and nobody takes chest X-rays upside down.

    The framing is varied that much because it is a shortcut. In the Kermany data the radiographs of
    the healthy are 1.2 times as wide as high, those of the sick 1.5 times; squashed to a square, a
    healthy chest that was framed like a sick one is taken for sick.
    """
    images = tf.cast(images, tf.float32)
    size = images.shape[1]
    u = [draws[:, i] * strength for i in range(AUGMENTATION_DRAWS)]
    # A quarter keep their place. Interpolation blurs, and a network that has only seen blurred
    # images takes every sharp one for healthy.
    moved = tf.cast(draws[:, 12] < 0.5, tf.float32)
    scaled = min(framing * strength, WIDEST_FRAMING) * moved
    images = affine(
        images,
        angle=0.07 * u[0] * moved,
        scale_x=tf.exp(scaled * draws[:, 1]),
        scale_y=tf.exp(scaled * draws[:, 2]),
        shift_x=0.04 * size * u[3] * moved,
        shift_y=0.04 * size * u[4] * moved,
    )

    def per_image(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, 1, 1, 1])

    # Sharpness belongs to the scanner and to how the file was made, not to the patient.
    detail = images - binomial_blur(images)
    images += per_image(tf.clip_by_value(0.8 * u[13], -1.0, 2.0)) * detail
    images = 255.0 * tf.pow(
        tf.clip_by_value(images / 255.0, 0.0, 1.0), per_image(tf.exp(0.24 * u[5]))
    )
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    images = (images - mean) * per_image(tf.exp(0.12 * u[6])) + mean + per_image(15.0 * u[7])
    images = tf.clip_by_value(images, 0.0, 255.0)

    # Unscaled draws decide where and whether; strength only how often.
    half = per_image(size * (0.10 + 0.05 * draws[:, 8]))
    centre_y = per_image(size * (draws[:, 9] + 1.0) / 2.0)
    centre_x = per_image(size * (draws[:, 10] + 1.0) / 2.0)
    axis = tf.range(size, dtype=tf.float32)
    covered = (tf.abs(axis[None, :, None, None] - centre_y) < half) & (
        tf.abs(axis[None, None, :, None] - centre_x) < half
    )
    covered &= per_image(draws[:, 11]) < 0.6 * strength - 1.0
    return tf.where(covered, mean, images)


def binomial_blur(images: tf.Tensor) -> tf.Tensor:
    """3x3 blur of [B, S, S, 1], float32; borders are repeated, so that they do not darken."""
    # By sums, because the last bits of a convolution depend on how many threads it is given, and a
    # resumed run must see the very same pixels.
    x = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")
    x = (x[:, :-2] + 2.0 * x[:, 1:-1] + x[:, 2:]) / 4.0
    return (x[:, :, :-2] + 2.0 * x[:, :, 1:-1] + x[:, :, 2:]) / 4.0


def affine(
    images: tf.Tensor,
    *,
    angle: tf.Tensor,
    scale_x: tf.Tensor,
    scale_y: tf.Tensor,
    shift_x: tf.Tensor,
    shift_y: tf.Tensor,
) -> tf.Tensor:
    """Affine transform of [B, S, S, C] about the centre; what comes from outside is 0.

    All parameters float32 [B]: angle in radians, shifts in pixels, scales above 1 show more.
    """
    centre = (images.shape[1] - 1) / 2
    a, b = tf.cos(angle) * scale_x, -tf.sin(angle) * scale_y
    c, d = tf.sin(angle) * scale_x, tf.cos(angle) * scale_y
    zero = tf.zeros_like(a)
    # Rows of the projective transform that maps output pixels to input pixels.
    transforms = tf.stack(
        [
            *(a, b, centre - (a + b) * centre + shift_x),
            *(c, d, centre - (c + d) * centre + shift_y),
            *(zero, zero),
        ],
        axis=1,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Zeroed uint8 array, in memory or, where that is large, mapped from an unnamed file.

    The file has no name from the start, so that no interruption can leave it behind.
    """
    size = int(np.prod(shape))
    if size <= LARGEST_IN_MEMORY:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            # Claims the space now: on a sparse file a full disk would kill the process later.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, mode="r+", shape=shape)
