"""Decoding of JPEG and PNG bytes to pixels, shared by training and serving."""

import functools
import logging
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cxr_tf.data.reading.damaged_jpegs import damaged_files, libjpeg_messages
from cxr_tf.data.reading.file_headers import (
    BLANK,
    CORRUPT,
    FAULTS,
    FINE,
    exif_orientation,
    has_exif,
    header_fault,
    is_16_bit_png,
    is_jpeg,
    significant_bits,
)
from cxr_tf.data.resizing import resize_to_square
from cxr_tf.data.tf_data import PARALLEL, prefetch

# Grey levels; an image with a smaller standard deviation is blank. The smallest among 5,304
# radiographs is 18, and 10 under the acquisition shifts.
MIN_CONTRAST = 3.0

# Smallest share of pixels between 10 and 90 % of the range; a mask has such pixels only at its
# edges. The smallest among 5,304 radiographs is 0.44, and 0.11 with margins of 20 % on all sides.
MIN_INTERMEDIATE = 0.05

# Side in pixels of the sample that decides whether an image has content.
_SAMPLES = 64

log = logging.getLogger(__name__)


# Above this size decoded images are kept in an unnamed file instead of in memory.
MAX_BYTES_IN_MEMORY = 4 * 1024**3


def decode_radiograph(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Decode JPEG or PNG bytes (scalar string) to uint8 [size, size, 1].

    Colour is converted to luminance, transparency is dropped, 16-bit values are scaled by the bits
    in use, and the EXIF orientation is applied. The image is squashed to the square with an
    antialiased bilinear filter, not cropped or padded: the aspect ratio differs between the classes
    of the Kermany data, and a border would reveal it.
    """
    return _decode(encoded, size)[0]


def decode_checked(encoded: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the fault code (int32) and the pixels, uint8 [size, size, 1], of a file's bytes.

    The pixels are zero if the header is faulty. Raises TensorFlow's error if decoding fails.
    """
    fault = header_fault(encoded)

    def decode() -> tuple[tf.Tensor, tf.Tensor]:
        gray, has_content = _decode(encoded, size)
        return tf.where(has_content, FINE, BLANK), gray

    return tf.cond(fault == FINE, decode, lambda: (fault, tf.zeros([size, size, 1], tf.uint8)))


def _decode(encoded: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode to uint8 [size, size, 1], and return whether the image has content."""
    image, sides, is_gray = tf.cond(
        is_jpeg(encoded), lambda: _decode_jpeg(encoded, size), lambda: _decode_png(encoded)
    )
    # Resized before the conversion to luminance: both are linear, and at full size the conversion
    # is as slow as decoding.
    resized = resize_to_square(image, sides, size)
    gray = tf.cond(
        is_gray,
        lambda: resized,
        lambda: tf.image.rgb_to_grayscale(tf.ensure_shape(resized, [size, size, 3])),
    )
    gray = tf.saturate_cast(tf.round(tf.ensure_shape(gray, [size, size, 1])), tf.uint8)
    gray = tf.cond(
        has_exif(encoded), lambda: _upright(gray, exif_orientation(encoded)), lambda: gray
    )
    return tf.ensure_shape(gray, [size, size, 1]), _has_content(image)


def _has_content(image: tf.Tensor) -> tf.Tensor:
    """Return whether an image uint8 [H, W, C] is neither blank nor two-valued.

    Tested on a grid of original pixels, because resizing would blur the edges of a mask to
    intermediate values.
    """
    shape = tf.shape(image)
    rows, columns = shape[0] // _SAMPLES + 1, shape[1] // _SAMPLES + 1
    values = tf.reduce_mean(tf.cast(image[::rows, ::columns], tf.float32), axis=-1)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    between = (values > low + 0.1 * (high - low)) & (values < high - 0.1 * (high - low))
    intermediate = tf.reduce_mean(tf.cast(between, tf.float32))
    return (tf.math.reduce_std(values) >= MIN_CONTRAST) & (intermediate >= MIN_INTERMEDIATE)


def _upright(gray: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Apply an EXIF orientation (int32, 1..8) to [S, S, 1]."""
    # Applied after resizing, which gives the same result on a square.
    image = tf.cond(orientation >= 5, lambda: tf.transpose(gray, [1, 0, 2]), lambda: gray)
    mirrored = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
    image = tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)
    flipped = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
    return tf.cond(flipped, lambda: image[::-1], lambda: image)


def _decode_jpeg(encoded: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decode JPEG bytes to uint8 [H, W, 1 or 3], sides float32 [2], and whether it is gray.

    A large image is downscaled by the decoder, which can omit the high frequencies of each block;
    that is a low-pass filter and saves most of the resizing. The decoder stops at twice `size` on
    the shorter side, and the antialiased filter does the rest; on average, pixels differ from those
    of a full decoding by a fraction of a grey level (Pillow's `thumbnail` does the same with its
    `reducing_gap` of 2). The decoder rounds fractional sides up; the exact sides are returned.
    """
    header = tf.image.extract_jpeg_shape(encoded)
    sides = header[:2]
    ratios = tf.constant([1, 2, 4, 8])  # the ratios that libjpeg offers
    which = tf.reduce_sum(tf.cast(tf.reduce_min(sides) // (2 * size) >= ratios[1:], tf.int32))

    def decode(ratio: int) -> tf.Tensor:
        # The channels of the file, or three for CMYK. INTEGER_ACCURATE, because at a ratio of 1
        # TensorFlow's default is half a grey level darker.
        return tf.io.decode_jpeg(encoded, channels=0, ratio=ratio, dct_method="INTEGER_ACCURATE")

    image = tf.switch_case(which, [functools.partial(decode, r) for r in (1, 2, 4, 8)])
    shrunk = tf.cast(sides, tf.float32) / tf.cast(ratios[which], tf.float32)
    # From the header, not the image's shape: TensorFlow's constant folding assumes the static
    # shape of one branch, the three channels of a PNG, for both.
    return image, shrunk, header[2] == 1


def _decode_png(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decode a PNG like `_decode_jpeg`, always to three channels."""
    image = tf.cond(
        is_16_bit_png(encoded),
        lambda: _decode_16_bit_png(encoded),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return image, tf.cast(tf.shape(image)[:2], tf.float32), tf.constant(False)


def _decode_16_bit_png(encoded: tf.Tensor) -> tf.Tensor:
    """Decode a 16-bit PNG to uint8 [H, W, 3], scaled by the bits in use.

    Detectors have 10 to 16 bits, which many programs store without scaling. The bits in use are
    those of the sBIT chunk; if a value needs more, the values were scaled to 16 bits, as the PNG
    specification requires. Without the chunk, they are the bits of the largest value, at least 8.
    """
    values = tf.cast(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16), tf.float32)
    largest = tf.reduce_max(values)
    stated = tf.minimum(significant_bits(encoded), 16)
    limits = tf.constant([2.0**bits - 1 for bits in range(8, 17)])
    needed = tf.reduce_min(tf.where(limits >= largest, limits, limits[-1]))
    limit = tf.pow(2.0, tf.cast(stated, tf.float32)) - 1
    limit = tf.where(stated == 0, needed, tf.where(largest <= limit, limit, limits[-1]))
    return tf.cast(tf.round(values * (255.0 / limit)), tf.uint8)


def load_images(
    paths: Sequence[str],
    size: int,
    *,
    masks: bool = False,
    in_memory: int = MAX_BYTES_IN_MEMORY,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files in parallel.

    Returns uint8 [N, size, size, 1] in the order of `paths`, and {row: reason} for files that
    cannot be read, whose rows are zero. Files that an exported model refuses (see `decode_checked`)
    are refused here too, so that training and serving accept the same images. masks: accept
    two-valued images. in_memory: bytes above which the images are kept in an unnamed file.
    """
    images = _allocate((len(paths), size, size, 1), in_memory)
    faults = np.full(len(paths), CORRUPT)
    files = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), list(paths)))
    # A file that cannot be decoded drops out here and is identified by its missing row number.
    decoded = files.map(_reader(size, masks), num_parallel_calls=PARALLEL).ignore_errors().batch(64)
    with libjpeg_messages() as messages:
        for rows, codes, batch in prefetch(decoded).as_numpy_iterator():
            readable = codes == FINE
            images[rows[readable]], faults[rows] = batch[readable], codes
    if messages:
        decodable = [paths[int(row)] for row in np.flatnonzero(np.isin(faults, (FINE, BLANK)))]
        for path, message in damaged_files(decodable, _decode_files).items():
            log.info("  damaged JPEG, decoded as far as possible: %s (%s)", path, message)
    reasons = {int(row): FAULTS[int(faults[row])] for row in np.flatnonzero(faults != FINE)}
    for row in np.flatnonzero(faults == CORRUPT).tolist():
        if not os.access(paths[row], os.R_OK):
            exists = os.path.exists(paths[row])
            reasons[row] = "no permission to read it" if exists else "no such file"
    return images, reasons


@functools.cache
def _reader(size: int, masks: bool) -> tf.types.experimental.GenericFunction:
    """Return a function (row, path) -> (row, fault, image uint8 [size, size, 1]), traced once."""

    def read(row: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        fault, image = decode_checked(tf.io.read_file(path), size)
        if masks:
            fault = tf.where(fault == BLANK, FINE, fault)
        return row, fault, image

    signature = [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)]
    return tf.function(read, input_signature=signature, autograph=False)


def _decode_files(paths: Sequence[str]) -> None:
    """Decode files at a small size, to get the decoder's messages."""
    for path in paths:
        decode_radiograph(tf.io.read_file(path), 32)


def _allocate(shape: tuple[int, ...], in_memory: int) -> np.ndarray:
    """Return a zeroed uint8 array, in memory or, if it is large, mapped from an unnamed file.

    The file is unnamed from the start, so that no interruption can leave it behind.
    """
    size = int(np.prod(shape))
    if size <= in_memory:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            # Reserve the space now: with a sparse file a full disk would kill the process later.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, mode="r+", shape=shape)
