"""Decoding of JPEG and PNG bytes to pixels, shared by training and serving."""

import functools
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cxr_tf.data.tf_data import PARALLEL, prefetch

# Flat-panel detectors have up to 19 megapixels, scanned film somewhat more. Decoding takes about
# 20 bytes per pixel, and the header of a file of one kilobyte can claim any size.
MAX_MEGAPIXELS = 50

# Enlarged to the model's size a smaller image has no content.
MIN_SIDE = 16

# Fault codes of a file, and their messages.
FINE, EMPTY, UNKNOWN, LARGE, SMALL, CORRUPT = range(6)

FAULTS = (
    "",
    "empty",
    "neither JPEG nor PNG",
    f"more than {MAX_MEGAPIXELS} megapixels",
    f"a side of less than {MIN_SIDE} pixels",
    "truncated or corrupt image",
)

# Above this size decoded images are kept in an unnamed file instead of in memory.
MAX_BYTES_IN_MEMORY = 4 * 1024**3


def decode_radiograph(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Decode JPEG or PNG bytes (scalar string) to uint8 [size, size, 1].

    Colour is converted to luminance, transparency dropped, 16-bit PNGs read by their upper byte.
    The image is squashed to the square with an antialiased bilinear filter, not cropped or padded:
    aspect ratio differs between the classes of the Kermany data, and a border would show it.
    """
    image, sides, is_gray = tf.cond(
        _is_jpeg(encoded), lambda: _decode_jpeg(encoded, size), lambda: _decode_other(encoded)
    )
    # The op behind `tf.image.resize`, which itself takes integer sides only. Resizing precedes the
    # conversion to luminance, which is linear too and at full size as slow as the decoding.
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
    """Decode JPEG bytes (scalar string): uint8 [H, W, 1 or 3], sides float32 [2], if it is gray.

    A large image is downscaled by the decoder, which can omit the high frequencies of each block;
    that is a low-pass filter and saves most of the resizing. It stops at twice `size` on the
    shorter side, and the antialiased filter does the rest; on average, pixels differ by a fraction
    of a grey level (Pillow's `thumbnail` does the same, by its `reducing_gap` of 2). The decoder
    rounds fractional sides up; the exact ones are returned.
    """
    header = tf.image.extract_jpeg_shape(encoded)
    sides = header[:2]
    ratios = tf.constant([1, 2, 4, 8])  # the ratios that libjpeg offers
    which = tf.reduce_sum(tf.cast(tf.reduce_min(sides) // (2 * size) >= ratios[1:], tf.int32))

    def decode(ratio: int) -> tf.Tensor:
        # The channels of the file, or three for CMYK. INTEGER_ACCURATE, because TensorFlow's
        # default is half a grey level darker, and only at a ratio of 1.
        return tf.io.decode_jpeg(encoded, channels=0, ratio=ratio, dct_method="INTEGER_ACCURATE")

    image = tf.switch_case(which, [functools.partial(decode, r) for r in (1, 2, 4, 8)])
    shrunk = tf.cast(sides, tf.float32) / tf.cast(ratios[which], tf.float32)
    # By the header, not by the image's shape: TensorFlow's constant folding assumes the static
    # shape of one branch, the three channels of a PNG, for both.
    return image, shrunk, header[2] == 1


def _decode_other(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decode a PNG like `_decode_jpeg`, always to three channels."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return image, tf.cast(tf.shape(image)[:2], tf.float32), tf.constant(False)


def header_fault(encoded: tf.Tensor) -> tf.Tensor:
    """Return the fault code of a file (scalar string) by its header, int32.

    Fails, as decoding does, on a JPEG with a damaged header.
    """
    length = tf.strings.length(encoded)
    is_jpeg = _is_jpeg(encoded)
    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    # PNG, 11.2.2: the first chunk starts with width and height as big-endian integers.
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
    fault = tf.where(tf.reduce_min(sides) < MIN_SIDE, SMALL, FINE)
    # In float64: the product of two such numbers can overflow an int64.
    pixels = tf.reduce_prod(tf.cast(sides, tf.float64))
    fault = tf.where(pixels > MAX_MEGAPIXELS * 1e6, LARGE, fault)
    fault = tf.where(tf.logical_and(is_png, length < 24), CORRUPT, fault)
    fault = tf.where(tf.logical_or(is_jpeg, is_png), fault, UNKNOWN)
    return tf.where(length == 0, EMPTY, fault)


def load_images(paths: Sequence[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files in parallel.

    Returns uint8 [N, size, size, 1] in the order of `paths`, and {row: reason} for files that
    cannot be read, whose rows are zero. Files that an exported model refuses (see `header_fault`)
    are refused here too, so that training and serving accept the same images.
    """
    images = _allocate((len(paths), size, size, 1))
    faults = np.full(len(paths), CORRUPT)
    files = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), list(paths)))
    # A file that cannot be decoded drops out here and is identified by its missing row number.
    decoded = files.map(_reader(size), num_parallel_calls=PARALLEL).ignore_errors().batch(64)
    for rows, codes, batch in prefetch(decoded).as_numpy_iterator():
        images[rows], faults[rows] = batch, codes
    reasons = {int(row): FAULTS[faults[row]] for row in np.flatnonzero(faults != FINE)}
    for row in np.flatnonzero(faults == CORRUPT).tolist():
        if not os.access(paths[row], os.R_OK):
            exists = os.path.exists(paths[row])
            reasons[row] = "no permission to read it" if exists else "no such file"
    return images, reasons


@functools.cache
def _reader(size: int) -> tf.types.experimental.GenericFunction:
    """Return (row, path) -> (row, fault, image uint8 [size, size, 1]), traced once per size."""

    def read(row: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        fault = header_fault(encoded)
        image = tf.cond(
            fault == FINE,
            lambda: decode_radiograph(encoded, size),
            lambda: tf.zeros([size, size, 1], tf.uint8),
        )
        return row, fault, image

    signature = [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)]
    return tf.function(read, input_signature=signature, autograph=False)


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Return a zeroed uint8 array, in memory or, if it is large, mapped from an unnamed file.

    The file is unnamed from the start, so that no interruption can leave it behind.
    """
    size = int(np.prod(shape))
    if size <= MAX_BYTES_IN_MEMORY:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            # Reserve the space now: with a sparse file a full disk would kill the process later.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, mode="r+", shape=shape)
