"""Images framed, exposed and stored otherwise: each shift does what its name says."""

import numpy as np
import pytest

from cxr_tf.data import acquisition_shifts

SIZE = 128


def chest(count: int = 3) -> np.ndarray:
    """Smooth grey images, no two alike, with one bright square off the centre."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    images = [60 + 40 * np.sin(3 * rows + k) + 30 * np.cos(4 * columns - k) for k in range(count)]
    pixels = np.stack(images)[..., None].round().astype(np.uint8)
    pixels[:, 36:44, 36:44] = 250
    return pixels


def square(images: np.ndarray) -> tuple[float, float]:
    """Row and column of the bright square's centre, from the image's."""
    return tuple(np.argwhere(images[0, ..., 0] > 200).mean(axis=0) - (SIZE - 1) / 2)


@pytest.mark.parametrize("name", acquisition_shifts.SHIFTS)
def test_pixels_stay_pixels_and_no_image_depends_on_its_batch(name: str) -> None:
    images = chest()
    before = images.copy()
    shifted = acquisition_shifts.SHIFTS[name](images)
    assert shifted.shape == images.shape and shifted.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    assert np.abs(shifted.astype(int) - images).mean() > 1 or name == "blurred"
    assert (shifted != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(acquisition_shifts.SHIFTS[name](images[2:]), shifted[2:])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        *(("framed lower", 1.22, 1), ("framed wider", 1, 1 / 1.22)),
        *(("framed narrower", 1, 1.22), ("framed higher", 1 / 1.22, 1)),
        *(("closer", 1 / 0.85, 1 / 0.85), ("farther", 1 / 1.15, 1 / 1.15)),
    ],
)
def test_framing_moves_what_is_seen(name: str, rows: float, columns: float) -> None:
    before = square(chest())
    after = square(acquisition_shifts.SHIFTS[name](chest()))
    assert after[0] == pytest.approx(before[0] * rows, abs=0.6)
    assert after[1] == pytest.approx(before[1] * columns, abs=0.6)


def test_exposure_goes_the_way_it_is_called() -> None:
    images = chest()
    assert acquisition_shifts.SHIFTS["brighter"](images).mean() > images.mean() + 10
    assert acquisition_shifts.SHIFTS["darker"](images).mean() < images.mean() - 10
    lit = acquisition_shifts.SHIFTS["lit from below"](images).astype(int) - images
    assert lit[:, :20].mean() < -5 and lit[:, -20:].mean() > 5
    flat = np.sort(acquisition_shifts.SHIFTS["equalised"](images)[0].ravel()) / 255
    np.testing.assert_allclose(flat, np.linspace(0, 1, flat.size), atol=0.05)


def test_noise_has_its_spread_and_blur_takes_it_away() -> None:
    grey = np.full((2, SIZE, SIZE, 1), 128, np.uint8)
    noise = acquisition_shifts.SHIFTS["noisy"](grey)
    assert noise.std() == pytest.approx(12, rel=0.05)
    assert acquisition_shifts.SHIFTS["blurred"](noise).std() < 0.6 * noise.std()
