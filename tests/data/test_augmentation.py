"""Augmentation: bounded, repeatable, and without mirroring."""

import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.data import augmentation

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 1)).astype(np.uint8)


SIZE = 128


def squares(*centres: tuple[int, int]) -> np.ndarray:
    """Draw bright squares of 7 pixels at (row, column): float32 [S, S, 1]."""
    image = np.zeros((SIZE, SIZE, 1), np.float32)
    for row, column in centres:
        image[row - 3 : row + 4, column - 3 : column + 4] = 200
    return image


def centre_of(images: np.ndarray) -> np.ndarray:
    """Return the centre of brightness (row, column) of each image, relative to its middle."""
    weight = np.asarray(images)[..., 0]
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    total = weight.sum(axis=(1, 2))
    rows, columns = weight.sum(axis=2) @ axis / total, weight.sum(axis=1) @ axis / total
    return np.stack([rows, columns], axis=1)


def moved(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    batch = np.repeat(image[None], len(draws), axis=0)
    return augmentation.augment(tf.constant(batch), tf.constant(draws, tf.float32)).numpy()


def only(column: int, *values: float) -> np.ndarray:
    """Return draws that are zero except for one column, without a cutout."""
    draws = np.zeros((len(values), augmentation.AUGMENTATION_DRAWS), np.float32)
    draws[:, augmentation.CUTOUT_DRAW] = 1
    draws[:, column] = values
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
        assert 1.2 < wider < 1.35
        assert wider * narrower == pytest.approx(1, abs=0.02)


def test_augmentation_never_mirrors() -> None:
    draws = augmentation.augmentation_draws(200, tf.constant([7, 0], tf.int64)).numpy()
    draws[:, 5:8], draws[:, 11], draws[:, 13:] = 0, 1, 0  # position alone
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
    draws[:, :8], draws[:, 12], draws[:, 13:] = 0, 1, 0  # cutout alone
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1)).astype(np.float32)
    changed = np.abs(moved(noise, draws) - noise)[..., 0] > 1e-2
    hidden = changed.any(axis=(1, 2))
    assert 0.15 < hidden.mean() < 0.6
    for mask in changed[hidden]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert np.ptp(rows) < 0.31 * SIZE
        assert np.ptp(columns) < 0.31 * SIZE


def test_strips_cover_the_upper_and_the_lower_border_of_some_images() -> None:
    draws = augmentation.augmentation_draws(400, tf.constant([7, 3], tf.int64)).numpy()
    draws[:, :9], draws[:, 11], draws[:, 12:19] = 0, 1, 0  # strips alone
    draws[:, 12] = 1  # not moved
    draws[:, 23] = 0  # all varied strongly
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1)).astype(np.float32)
    changed = (np.abs(moved(noise, draws) - noise)[..., 0] > 1e-2).mean(axis=2) > 0.9
    top, bottom = changed[:, : SIZE // 2], changed[:, SIZE // 2 :]
    for half in (top, bottom):
        assert 0.15 < half.any(axis=1).mean() < 0.35
        assert half.sum(axis=1).max() <= augmentation.STRIP * SIZE + 1
    assert top[:, 0].mean() > 0.15 and not top[:, -20:].any()
    assert bottom[:, -1].mean() > 0.15 and not bottom[:, :20].any()


def test_outside_of_the_image_is_black_or_its_mirror_image() -> None:
    bright = np.full((SIZE, SIZE, 1), 150, np.float32)
    draws = np.repeat(only(2, 1), 2, axis=0)  # higher, so that the image ends inside
    draws[:, 14] = -0.5, 0.5
    mirrored, black = moved(bright, draws)[:, 2, SIZE // 2, 0]
    assert mirrored == pytest.approx(150, abs=1)
    assert black == 0


def test_bands_of_detail_change_without_the_mean() -> None:
    rows = np.arange(SIZE)[:, None, None] * np.ones((1, SIZE, 1))
    coarse = (120 + 40 * np.sin(2 * np.pi * rows / (SIZE / 6))).astype(np.float32)
    weaker, same, stronger = moved(coarse, only(17, -1, 0, 1))
    assert weaker.std() < 0.9 * same.std() < same.std() < 0.9 * stronger.std()
    np.testing.assert_allclose([weaker.mean(), stronger.mean()], same.mean(), atol=1)


def test_variation_for_the_autoencoder_has_no_strips_bands_or_mirrored_borders() -> None:
    draws = augmentation.augmentation_draws(50, tf.constant([7, 4], tf.int64)).numpy()
    changed = draws.copy()
    changed[:, augmentation.ACQUISITION_DRAWS :] *= -1
    images = tf.constant(np.repeat(IMAGES[:1], 50, axis=0))
    first, second = (
        augmentation.vary_acquisition(images, tf.constant(d), framing=0.1).numpy()
        for d in (draws, changed)
    )
    np.testing.assert_array_equal(first, second)


def test_one_image_in_ten_gets_black_margins_of_up_to_a_fifth_of_the_side() -> None:
    bright = np.full((SIZE, SIZE, 1), 150, np.float32)
    draws = augmentation.augmentation_draws(1000, tf.constant([7, 4], tf.int64)).numpy()
    draws[:, :22], draws[:, 11], draws[:, 14], draws[:, 23] = 0, 1, -1, 0  # margins alone
    filled = (moved(bright, draws)[:, SIZE // 2, :, 0] > 75).mean(axis=1)
    assert 0.07 < (filled < 1).mean() < 0.12
    assert 0.58 < filled.min() < 0.64


def test_half_of_the_images_are_varied_mildly() -> None:
    draws = augmentation.augmentation_draws(40, tf.constant([7, 5], tf.int64))
    images = np.repeat(IMAGES[:1], 40, axis=0)
    augmented = augmentation.augment(images, draws).numpy()
    mild = augmentation.vary_acquisition(images, draws).numpy()
    same = np.abs(augmented - mild).max(axis=(1, 2, 3)) < 1e-2
    np.testing.assert_array_equal(same, draws[:, 23] > 0)
    assert 12 <= same.sum() <= 28
