"""Decoding in the served graph: bad images are refused, with their position and the reason."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.serving.decoding import decode_images


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_blank_image_is_refused_with_its_position() -> None:
    chest = phantom("normal", seed=0, patient=1, size=64).image
    blank = np.full((500, 500), 255, np.uint8)
    images = decode_images(tf.constant([png(chest), png(chest)]), 64)
    np.testing.assert_array_equal(images[1, ..., 0], chest)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"image_bytes\[1\]: a blank or two-val"
    ):
        decode_images(tf.constant([png(chest), png(blank)]), 64)
