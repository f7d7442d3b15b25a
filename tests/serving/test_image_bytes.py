"""Tests of decoding in the served graph: bad images, file types, bit depths."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cxr_tf.data.decoding import decode_radiograph
from cxr_tf.models.classifier import build_classifier
from cxr_tf.serving import decoding, export, loading
from cxr_tf.serving.prediction import client


def file_of(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return the header of a PNG of that size, without image data."""
    chunk = b"IHDR" + struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def jpeg_with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """Return the file with this size in its header."""
    start = jpeg.index(b"\xff\xc0")
    return jpeg[: start + 5] + struct.pack(">HH", height, width) + jpeg[start + 9 :]


GRAY = np.random.default_rng(0).integers(0, 256, (80, 100)).astype(np.uint8)
PNG, JPEG = file_of(GRAY, "PNG"), file_of(GRAY, "JPEG")
UNREADABLE = "truncated or corrupt image"
UNKNOWN = "neither JPEG nor PNG"
LARGE = "more than 50 megapixels"
SMALL = "a side of less than 16 pixels"
BAD = {
    "empty": (b"", "empty"),
    "text": (b"this is no image", UNKNOWN),
    "text in base64": (base64.b64encode(b"this is no image"), UNKNOWN),
    "image in base64, twice": (base64.b64encode(PNG), UNKNOWN),
    "gif": (file_of(GRAY, "GIF"), UNKNOWN),
    "bmp": (file_of(GRAY, "BMP"), UNKNOWN),
    "half a png": (PNG[: len(PNG) // 2], UNREADABLE),
    "20 bytes of a png": (PNG[:20], UNREADABLE),
    "half a jpeg": (JPEG[: len(JPEG) // 2], UNREADABLE),
    "5 bytes of a jpeg": (JPEG[:5], UNREADABLE),
    "wrong checksum": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], UNREADABLE),
    "png bomb": (png_header(50_000, 50_000), LARGE),
    "largest png bomb": (png_header(2**32 - 1, 2**32 - 1), LARGE),
    "jpeg bomb": (jpeg_with_size(JPEG, 65_500, 65_500), LARGE),
    "just too large": (png_header(10_000, 5_001), LARGE),
    "just not too large, but cut off": (png_header(10_000, 5_000), UNREADABLE),
    "1x1": (file_of(GRAY[:1, :1], "PNG"), SMALL),
    "one row": (file_of(GRAY[:1], "JPEG"), SMALL),
    "15x15": (file_of(GRAY[:15, :15], "PNG"), SMALL),
    "0x0": (png_header(0, 0), SMALL),
}


@pytest.fixture(scope="module")
def decode():
    specification = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda x: decoding.decode_images(x, 64), input_signature=specification)


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_named_by_position_and_reason(decode, kind: str) -> None:
    content, reason = BAD[kind]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        decode(tf.constant([PNG, JPEG, content, PNG]))
    assert f"image_bytes[2]: {reason} ({len(content)} bytes); 1 of 4 images" in str(caught.value)
    batch = [PNG, JPEG, content, PNG]
    assert client.bad_images(str(caught.value), batch) == {2: reason}


def test_error_names_as_many_bad_images_as_a_status_can_hold(decode) -> None:
    batch = [b""] * 20 + [PNG] + [b"text"] * 3
    with pytest.raises(tf.errors.InvalidArgumentError, match="23 of 24 images") as caught:
        decode(tf.constant(batch))
    assert client.bad_images(str(caught.value), batch) == dict.fromkeys(range(16), "empty")
    # Without those, the next are named.
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        decode(tf.constant(batch[16:]))
    assert set(client.bad_images(str(caught.value), batch[16:])) == {0, 1, 2, 3, 5, 6, 7}


def test_images_are_decoded_in_order_and_as_in_training(decode) -> None:
    rgb = np.stack([GRAY, GRAY[::-1], GRAY], axis=-1)
    files = [
        *(PNG, JPEG, file_of(rgb, "PNG"), file_of(rgb, "JPEG")),
        file_of(GRAY.astype(np.uint16) * 257, "PNG"),
        file_of(GRAY[:16, :16], "PNG"),
        file_of(np.tile(GRAY, (25, 30)), "PNG"),
        file_of(np.roll(GRAY, 30), "JPEG"),
    ]
    expected = [decode_radiograph(tf.constant(f), 64).numpy() for f in files]
    np.testing.assert_array_equal(decode(tf.constant(files * 5)), expected * 5)
    # 16 bits are scaled to 8.
    np.testing.assert_array_equal(expected[4], expected[0])
    assert decode(tf.constant([], tf.string)).shape == (0, 64, 64, 1)


def test_gray_rgb_and_16_bit_files_have_equal_predictions(
    tiny_backbone: str, tmp_path: Path
) -> None:
    pictures = (GRAY, np.stack([GRAY] * 3, axis=-1), GRAY.astype(np.uint16) * 257)
    files = [file_of(picture, "PNG") for picture in pictures]
    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    folder = export.export_classifier(
        model,
        tmp_path / "tiny",
        classes=("normal", "pneumonia"),
        threshold=0.5,
        card={"kind": "classifier"},
    )
    served = loading.load_served(str(folder))
    out = served.signature("serving_default")(image_bytes=tf.constant(files))
    first, *others = out["probabilities"].numpy()
    for other in others:  # some processors sum the rows of a batch in another order
        np.testing.assert_allclose(other, first, rtol=1e-6)
