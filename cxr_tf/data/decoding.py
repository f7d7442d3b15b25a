"""From the bytes of a JPEG or PNG to pixels: the one decoder of training and serving."""

import functools
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cxr_tf.data.tf_data import PARALLEL, prefetch

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
    for rows, found, batch in prefetch(decoded).as_numpy_iterator():
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
