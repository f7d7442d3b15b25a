"""Acquisition shifts and perturbed copies: each does what its name says."""

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.data.acquisition import shifts
from cxr_tf.data.sources.phantoms import phantom

SIZE = 128


def chest(count: int = 3) -> np.ndarray:
    """Smooth grey images, no two alike, with one bright square off the centre."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    images = [60 + 40 * np.sin(3 * rows + k) + 30 * np.cos(4 * columns - k) for k in range(count)]
    pixels = np.stack(images)[..., None].round().astype(np.uint8)
    pixels[:, 36:44, 36:44] = 250
    return pixels


def square(images: np.ndarray) -> tuple[float, float]:
    """Return row and column of the bright square's centre, relative to the image's centre."""
    return tuple(np.argwhere(images[0, ..., 0] > 200).mean(axis=0) - (SIZE - 1) / 2)


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_shifts_return_8_bit_images_and_do_not_depend_on_the_batch(name: str) -> None:
    images = chest()
    before = images.copy()
    shifted = shifts.SHIFTS[name](images)
    assert shifted.shape == images.shape and shifted.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    assert np.abs(shifted.astype(int) - images).mean() > 1 or "detail" in name or name == "blurred"
    assert (shifted != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(shifts.SHIFTS[name](images[2:]), shifted[2:])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        *(("framed lower", 1.22, 1), ("framed wider", 1, 1 / 1.22)),
        *(("framed narrower", 1, 1.22), ("framed higher", 1 / 1.22, 1)),
        *(("closer", 1 / 0.85, 1 / 0.85), ("farther", 1 / 1.15, 1 / 1.15), ("margins", 0.6, 0.6)),
    ],
)
def test_framing_shifts_move_content_by_the_stated_factor(
    name: str, rows: float, columns: float
) -> None:
    before = square(chest())
    after = square(shifts.SHIFTS[name](chest()))
    assert after[0] == pytest.approx(before[0] * rows, abs=0.6)
    assert after[1] == pytest.approx(before[1] * columns, abs=0.6)


def test_exposure_shifts_match_their_names() -> None:
    images = chest()
    assert shifts.SHIFTS["brighter"](images).mean() > images.mean() + 10
    assert shifts.SHIFTS["darker"](images).mean() < images.mean() - 10
    lit = shifts.SHIFTS["lit from below"](images).astype(int) - images
    assert lit[:, :20].mean() < -5 and lit[:, -20:].mean() > 5
    flat = np.sort(shifts.SHIFTS["equalised"](images)[0].ravel()) / 255
    np.testing.assert_allclose(flat, np.linspace(0, 1, flat.size), atol=0.05)


def test_noise_has_the_stated_spread_and_blur_removes_it() -> None:
    grey = np.full((2, SIZE, SIZE, 1), 128, np.uint8)
    noise = shifts.SHIFTS["noisy"](grey)
    assert noise.std() == pytest.approx(12, rel=0.05)
    assert shifts.SHIFTS["blurred"](noise).std() < 0.6 * noise.std()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """300 of the same healthy phantom: uint8 [300, 96, 96, 1]."""
    return np.repeat(phantom("normal", seed=5, patient=0, size=96).image[None, ..., None], 300, 0)


@pytest.mark.parametrize("name", ["perturb_exposure", "perturb_scanner"])
def test_perturbed_copies_are_repeatable_and_distinct(images: np.ndarray, name: str) -> None:
    changed = getattr(shifts, name)(images, 3)
    assert changed.shape == images.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(getattr(shifts, name)(images, 3), changed)
    assert not np.array_equal(getattr(shifts, name)(images, 4), changed)
    # 256 are changed at a time; those after must not be the first ones again.
    assert len({image.tobytes() for image in changed}) == len(images)


def test_a_scanner_perturbation_preserves_content(images: np.ndarray) -> None:
    changed = shifts.perturb_scanner(images, 3).astype(float)
    correlations = [np.corrcoef(x.ravel(), images[0].ravel())[0, 1] for x in changed]
    assert np.median(correlations) > 0.9 and min(correlations) > 0.6
    # Darker and brighter by a quarter of the mean, and light from either edge.
    means = changed.mean(axis=(1, 2, 3))
    assert means.min() < 0.75 * images.mean() and means.max() > 1.25 * images.mean()
    tilt = changed[:, 48:].mean(axis=(1, 2, 3)) / changed[:, :48].mean(axis=(1, 2, 3))
    usual = images[0, 48:].mean() / images[0, :48].mean()
    assert tilt.min() < 0.8 * usual and tilt.max() > 1.2 * usual


def test_a_third_of_the_copies_is_blurred_and_a_third_noisy() -> None:
    seed = tf.constant([1, 2], tf.int64)
    # Of images without any detail, what differs from pixel to pixel is noise.
    flat = shifts.simulate_scanner(tf.fill([600, 64, 64, 1], 100.0), seed).numpy()
    grain = np.abs(np.diff(flat, 2, axis=1)).mean(axis=(1, 2, 3))
    assert np.mean(grain > 0.1) == pytest.approx(1 / 3, abs=0.08)  # four standard errors
    # Of stripes one pixel wide the blur leaves nothing, so half of it leaves half.
    stripes = np.where(np.arange(64) % 2, 140.0, 80.0) * np.ones((600, 64, 64))
    striped = shifts.simulate_scanner(tf.constant(stripes[..., None], tf.float32), seed).numpy()
    contrast = np.abs(np.diff(striped, axis=2)).mean(axis=(1, 2, 3))
    assert np.mean(contrast < 30) == pytest.approx(1 / 6, abs=0.06)


def test_margins_surround_the_whole_image() -> None:
    images = chest()
    for name, value in (("black margins", 0), ("white margins", 255)):
        framed = shifts.SHIFTS[name](images)
        assert np.all(framed[:, :10] == value) and np.all(framed[:, :, -10:] == value)
        inside = framed[:, 10:-10, 10:-10]
        assert abs(inside.mean() - images.mean()) < 6


def test_band_gains_change_their_bands_alone() -> None:
    images = chest()
    same = shifts.band_gains(images, (1, 1, 1, 1))
    assert np.abs(same.astype(int) - images).max() <= 1
    # The edge of the square is fine detail, its surroundings are not.
    sharp = shifts.SHIFTS["fine detail stronger"](images).astype(int)
    soft = shifts.SHIFTS["fine detail weaker"](images).astype(int)
    step = [x[0, 40, 36, 0] - x[0, 40, 33, 0] for x in (soft, images.astype(int), sharp)]
    assert step[0] < step[1] - 20
    assert abs(sharp.mean() - images.mean()) < 1 and abs(soft.mean() - images.mean()) < 1
