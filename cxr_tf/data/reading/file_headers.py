"""Read the headers of JPEG and PNG files in TensorFlow's graph: faults, bits, orientation."""

import tensorflow as tf

# Flat-panel detectors have up to 19 megapixels, scanned film somewhat more. Decoding takes about
# 20 bytes per pixel, and the header of a file of one kilobyte can claim any size.
MAX_MEGAPIXELS = 50

# A smaller image, enlarged to the model's input size, shows nothing useful.
MIN_SIDE = 16

# Fault codes of a file, and their messages.
FINE, EMPTY, UNKNOWN, LARGE, SMALL, CORRUPT, BLANK = range(7)

FAULTS = (
    "",
    "empty",
    "neither JPEG nor PNG",
    f"more than {MAX_MEGAPIXELS} megapixels",
    f"a side of less than {MIN_SIDE} pixels",
    "truncated or corrupt image",
    "a blank or two-valued image, not a radiograph",
)

# The metadata used here are within the first bytes of a file, and the EXIF directory is within the
# first bytes of the EXIF data, before a thumbnail.
_METADATA_BYTES, _EXIF_BYTES = 1 << 12, 1 << 11

_ORIENTATION_TAG, _SHORT, _MAX_TAGS = 0x0112, 3, 64


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether a file (scalar string) is a JPEG, by its first bytes."""
    return tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"


def is_16_bit_png(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether a PNG (scalar string) has 16 bits per sample (PNG, 11.2.2: byte 24)."""
    return tf.strings.substr(encoded, 24, 1) == b"\x10"


def header_fault(encoded: tf.Tensor) -> tf.Tensor:
    """Return the fault code, int32, that the header of a file (scalar string) gives.

    Fails, as decoding does, on a JPEG with a damaged header.
    """
    length = tf.strings.length(encoded)
    jpeg = is_jpeg(encoded)
    png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    # PNG, 11.2.2: the first chunk starts with width and height as big-endian integers.
    has_sides = tf.logical_and(png, length >= 24)

    def png_sides() -> tf.Tensor:
        digits = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8)
        digits = tf.cast(tf.reshape(digits, [2, 4]), tf.int64)
        return tf.reduce_sum(digits * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64), axis=1)

    sides = tf.cond(
        jpeg,
        lambda: tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64),
        lambda: tf.cond(has_sides, png_sides, lambda: tf.zeros([2], tf.int64)),
    )
    fault = tf.where(tf.reduce_min(sides) < MIN_SIDE, SMALL, FINE)
    # In float64: the product of two such numbers can overflow an int64.
    pixels = tf.reduce_prod(tf.cast(sides, tf.float64))
    fault = tf.where(pixels > MAX_MEGAPIXELS * 1e6, LARGE, fault)
    fault = tf.where(tf.logical_and(png, length < 24), CORRUPT, fault)
    fault = tf.where(tf.logical_or(jpeg, png), fault, UNKNOWN)
    return tf.where(length == 0, EMPTY, fault)


def significant_bits(encoded: tf.Tensor) -> tf.Tensor:
    """Return the significant bits in the sBIT chunk of a PNG (scalar string), int32; 0 without one.

    PNG, 11.3.2.4: the chunk comes before the pixels; its first byte is the first channel's.
    """
    window = _bytes_from(encoded, 0, _METADATA_BYTES)
    at = _find(window, b"sBIT")
    return tf.where(at >= 0, _byte(window, at + 4), 0)


def has_exif(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether a JPEG or PNG (scalar string) may have EXIF data."""
    # One operation, because every image is tested. \C is a byte.
    head = tf.strings.substr(encoded, 0, _METADATA_BYTES)
    return tf.strings.regex_full_match(head, r"(?s)\C*(Exif|eXIf)\C*")


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of a JPEG or PNG (scalar string), int32 in 1..8; 1 without one.

    EXIF data follow `Exif\\0\\0` in JPEG, and the chunk type `eXIf` in PNG. They have the structure
    of a TIFF file (Exif 2.32, 4.6): the header ends with the offset of a directory, which consists
    of a count and of entries of 12 bytes each.
    """
    head = _bytes_from(encoded, 0, _METADATA_BYTES)
    in_jpeg, in_png = _find(head, b"Exif\0\0"), _find(head, b"eXIf")
    start = tf.where(is_jpeg(encoded), in_jpeg + 6, in_png + 4)
    found = tf.where(is_jpeg(encoded), in_jpeg, in_png) >= 0
    window = _bytes_from(encoded, start, _EXIF_BYTES)
    little = _byte(window, 0) == ord("I")

    def unsigned(at: tf.Tensor, size: int) -> tf.Tensor:
        values = [_byte(window, at + k) for k in range(size)]
        big_endian = sum(v * 256 ** (size - 1 - k) for k, v in enumerate(values))
        little_endian = sum(v * 256**k for k, v in enumerate(values))
        return tf.where(little, little_endian, big_endian)

    directory = unsigned(tf.constant(4), 4)
    entries = directory + 2 + 12 * tf.range(_MAX_TAGS)
    is_orientation = (
        (tf.range(_MAX_TAGS) < unsigned(directory, 2))
        & (unsigned(entries, 2) == _ORIENTATION_TAG)
        & (unsigned(entries + 2, 2) == _SHORT)
    )
    value = tf.reduce_max(tf.where(is_orientation, unsigned(entries + 8, 2), 0))
    return tf.where(found & (value >= 1) & (value <= 8), value, 1)


def _bytes_from(encoded: tf.Tensor, start: int | tf.Tensor, count: int) -> tf.Tensor:
    """Return up to `count` bytes, from a given position, as int32."""
    start = tf.minimum(start, tf.strings.length(encoded))
    return tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, start, count), tf.uint8), tf.int32)


def _byte(window: tf.Tensor, at: int | tf.Tensor) -> tf.Tensor:
    """Return the bytes at the given positions, and 0 for positions outside the window."""
    inside = (at >= 0) & (at < tf.size(window))
    padded = tf.concat([window, [0]], axis=0)
    return tf.gather(padded, tf.where(inside, at, tf.size(window)))


def _find(window: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Return the first position of a pattern, or -1, int32."""
    count = tf.maximum(tf.size(window) - len(pattern) + 1, 0)
    match = tf.fill([count], True)
    for k, byte in enumerate(pattern):
        match &= window[k : k + count] == byte
    first = tf.where(match)[:1, 0]
    return tf.reduce_max(tf.concat([tf.cast(first, tf.int32), [-1]], axis=0))
