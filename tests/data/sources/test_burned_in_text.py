"""Detection of burned-in text: names in corners are found, side markers are not text."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cxr_tf.data.sources.burned_in_text import has_text
from cxr_tf.data.sources.phantoms import FINDINGS, phantom


def chest(patient: int) -> Image.Image:
    drawn = phantom(FINDINGS[patient % 3], seed=4, patient=patient, size=512)
    return Image.fromarray(drawn.image)


@pytest.mark.parametrize("place", [(12, 10), (330, 12), (12, 490), (300, 488)])
def test_a_name_in_a_corner_is_detected(place: tuple[int, int]) -> None:
    for patient in range(2):
        image = chest(patient)
        font = ImageFont.load_default(12 + 4 * patient)
        ImageDraw.Draw(image).text(place, "DOE^JANE 1933", fill=255, font=font)
        assert has_text(np.asarray(image)), patient


def test_phantoms_and_side_markers_are_not_text() -> None:
    for patient in range(6):
        image = chest(patient)
        font = ImageFont.load_default(28)
        ImageDraw.Draw(image).text((440, 20), ("R", "L", "PA")[patient % 3], fill=255, font=font)
        assert not has_text(np.asarray(image)), patient
