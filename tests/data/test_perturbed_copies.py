"""Another scanner and another day: much changes, and the content stays."""

import numpy as np
import pytest

from cxr_tf.data.sources.phantoms import phantom


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """300 of the same healthy phantom: uint8 [300, 96, 96, 1]."""
    return np.repeat(phantom("normal", seed=5, patient=0, size=96).image[None, ..., None], 300, 0)


@pytest.mark.parametrize("name", ["another_exposure", "another_scanner"])
def test_a_seed_repeats_it_and_no_two_are_alike(images: np.ndarray, name: str) -> None:
    from cxr_tf.data import acquisition_shifts

    changed = getattr(acquisition_shifts, name)(images, 3)
    assert changed.shape == images.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(getattr(acquisition_shifts, name)(images, 3), changed)
    assert not np.array_equal(getattr(acquisition_shifts, name)(images, 4), changed)
    # 256 are changed at a time; those after must not be the first ones again.
    assert len({image.tobytes() for image in changed}) == len(images)


def test_nothing_moves_on_another_scanner(images: np.ndarray) -> None:
    from cxr_tf.data.acquisition_shifts import another_scanner

    changed = another_scanner(images, 3).astype(float)
    correlations = [np.corrcoef(x.ravel(), images[0].ravel())[0, 1] for x in changed]
    assert np.median(correlations) > 0.9 and min(correlations) > 0.6
    # Darker and brighter by a quarter of the mean, and light from either edge.
    means = changed.mean(axis=(1, 2, 3))
    assert means.min() < 0.75 * images.mean() and means.max() > 1.25 * images.mean()
    tilt = changed[:, 48:].mean(axis=(1, 2, 3)) / changed[:, :48].mean(axis=(1, 2, 3))
    usual = images[0, 48:].mean() / images[0, :48].mean()
    assert tilt.min() < 0.8 * usual and tilt.max() > 1.2 * usual


def test_a_third_is_blurred_and_a_third_noisy() -> None:
    import tensorflow as tf

    from cxr_tf.data.acquisition_shifts import rescanned

    seed = tf.constant([1, 2], tf.int64)
    # Of images without any detail, what differs from pixel to pixel is noise.
    flat = rescanned(tf.fill([600, 64, 64, 1], 100.0), seed).numpy()
    grain = np.abs(np.diff(flat, 2, axis=1)).mean(axis=(1, 2, 3))
    assert np.mean(grain > 0.1) == pytest.approx(1 / 3, abs=0.08)  # four standard errors
    # Of stripes one pixel wide the blur leaves nothing, so half of it leaves half.
    stripes = np.where(np.arange(64) % 2, 140.0, 80.0) * np.ones((600, 64, 64))
    striped = rescanned(tf.constant(stripes[..., None], tf.float32), seed).numpy()
    contrast = np.abs(np.diff(striped, axis=2)).mean(axis=(1, 2, 3))
    assert np.mean(contrast < 30) == pytest.approx(1 / 6, abs=0.06)
