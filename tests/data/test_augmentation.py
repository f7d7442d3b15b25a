"""Augmentation: bounded, repeatable, and without mirroring."""

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.data import augmentation

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 1)).astype(np.uint8)


SIZE = 128


def squares(*centres: tuple[int, int]) -> np.ndarray:
    """Bright squares of 7 pixels at (row, column), float32 [S, S, 1]."""
    image = np.zeros((SIZE, SIZE, 1), np.float32)
    for row, column in centres:
        image[row - 3 : row + 4, column - 3 : column + 4] = 200
    return image


def centre_of(images: np.ndarray) -> np.ndarray:
    """Centre of brightness (row, column) of each image, from the image's middle."""
    weight = np.asarray(images)[..., 0]
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    total = weight.sum(axis=(1, 2))
    rows, columns = weight.sum(axis=2) @ axis / total, weight.sum(axis=1) @ axis / total
    return np.stack([rows, columns], axis=1)


def moved(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    batch = np.repeat(image[None], len(draws), axis=0)
    return augmentation.augment(tf.constant(batch), tf.constant(draws, tf.float32)).numpy()


def only(column: int, *values: float) -> np.ndarray:
    """Draws that are zero but for one column; no cutout."""
    draws = np.zeros((len(values), augmentation.AUGMENTATION_DRAWS), np.float32)
    draws[:, column] = values
    draws[:, 11] = 1
    return draws


def test_shift_is_a_few_percent() -> None:
    for column, axis in ((3, 1), (4, 0)):
        left, still, right = centre_of(moved(squares((64, 64)), only(column, -1, 0, 1)))[:, axis]
        assert still == pytest.approx(0.5, abs=1e-3)
        assert left - still == pytest.approx(still - right, abs=0.1)
        assert 0.02 * SIZE < left - still < 0.08 * SIZE


def test_rotation_is_a_few_degrees_about_the_centre() -> None:
    places = centre_of(moved(squares((24, 64)), only(0, -1, 0, 1)))
    first, still, last = np.degrees(np.arctan2(places[:, 1], -places[:, 0]))
    assert first - still == pytest.approx(still - last, abs=0.1)
    assert 2 < abs(first - still) < 8
    np.testing.assert_allclose(np.hypot(*places.T), np.hypot(*places[1]), atol=0.5)


def test_width_and_height_are_scaled_independently() -> None:
    for column, scaled, kept in ((1, 1, 0), (2, 0, 1)):
        places = centre_of(moved(squares((24, 24)), only(column, -1, 0, 1)))
        np.testing.assert_allclose(places[:, kept], places[1, kept], atol=0.3)
        wider, _, narrower = places[:, scaled] / places[1, scaled]
        assert 1.1 < wider < 1.2
        assert wider * narrower == pytest.approx(1, abs=0.02)


def test_augmentation_never_mirrors() -> None:
    draws = augmentation.augmentation_draws(200, tf.constant([7, 0], tf.int64)).numpy()
    draws[:, 5:8], draws[:, 11] = 0, 1  # position alone
    places = centre_of(moved(squares((30, 30)), draws))
    assert (places < -10).all()


def test_exposure_is_bounded_and_pixels_stay_in_range() -> None:
    draws = augmentation.augmentation_draws(200, tf.constant([7, 1], tf.int64)).numpy()
    assert draws.shape == (200, augmentation.AUGMENTATION_DRAWS)
    assert draws.min() >= -1
    assert draws.max() < 1
    assert np.abs(draws).max() > 0.98
    images = np.repeat(IMAGES[:1], 200, axis=0)
    out = augmentation.augment(tf.constant(images), tf.constant(draws), 2.0).numpy()
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 255
    flat = np.full((SIZE, SIZE, 1), 100, np.float32)
    for column in (5, 7):  # gamma, brightness
        low, same, high = np.sort(moved(flat, only(column, -1, 0, 1)).mean(axis=(1, 2, 3)))
        assert same == pytest.approx(100, abs=0.01)
        assert 5 < 100 - low < 50
        assert 5 < high - 100 < 50


def test_cutout_covers_a_square_of_bounded_size_in_some_images() -> None:
    draws = augmentation.augmentation_draws(400, tf.constant([7, 2], tf.int64)).numpy()
    draws[:, :8], draws[:, 12:] = 0, 0  # cutout alone
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1)).astype(np.float32)
    changed = np.abs(moved(noise, draws) - noise)[..., 0] > 1e-2
    hidden = changed.any(axis=(1, 2))
    assert 0.15 < hidden.mean() < 0.6
    for mask in changed[hidden]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert np.ptp(rows) < 0.31 * SIZE
        assert np.ptp(columns) < 0.31 * SIZE
