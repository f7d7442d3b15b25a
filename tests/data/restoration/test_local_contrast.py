"""Local contrast: invariant to exposure, and invertible for opacities."""

import numpy as np
import pytest

from cxr_tf.data.sources.phantoms import phantom


@pytest.fixture(scope="module")
def chests() -> tuple[np.ndarray, np.ndarray]:
    """24 healthy phantoms float32 [24, 112, 112, 1] and their lungs."""
    drawn = [phantom("normal", seed=5, patient=i, size=112) for i in range(24)]
    images = np.stack([p.image for p in drawn])[..., None].astype(np.float32)
    return images, np.stack([p.lungs for p in drawn])[..., None].astype(np.float32)


def test_local_contrast_ignores_exposure_and_illumination(
    chests: tuple[np.ndarray, np.ndarray],
) -> None:
    from cxr_tf.data.restoration.local_contrast import local_contrast

    images = chests[0]
    light = np.linspace(0.8, 1.2, 112, dtype=np.float32)[:, None, None]
    first = np.asarray(local_contrast(images))
    assert first.std() > 0.6 and np.abs(first).max() <= 2.8
    for other in (0.6 * images + 20, 0.8 * images * light):
        assert np.abs(images - other).mean() > 20
        assert np.abs(first - np.asarray(local_contrast(other))).mean() < 0.12
    blank = np.full((1, 112, 112, 1), 130, np.float32)
    np.testing.assert_allclose(local_contrast(blank), 0, atol=0.02)


@pytest.fixture(scope="module")
def painted(chests: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same phantoms with opacities, and their excess of local contrast over healthy ones."""
    import tensorflow as tf

    from cxr_tf.data.restoration.local_contrast import local_contrast
    from cxr_tf.data.restoration.opacities import paint

    healthy, lungs = chests
    images = paint(tf.constant(healthy), tf.constant(lungs), tf.constant([1, 2], tf.int64)).numpy()
    return images, np.asarray(local_contrast(images)) - np.asarray(local_contrast(healthy))


def test_remove_residual_restores_the_healthy_image(
    chests: tuple[np.ndarray, np.ndarray], painted: tuple[np.ndarray, np.ndarray]
) -> None:
    from cxr_tf.data.restoration.local_contrast import remove_residual

    images, removed = painted
    was = np.abs(images - chests[0]).mean(axis=(1, 2, 3))
    assert (was > 1).sum() >= 15
    left = np.abs(np.asarray(remove_residual(images, removed)) - chests[0]).mean(axis=(1, 2, 3))
    share = left[was > 1] / was[was > 1]
    assert np.median(share) < 0.6 and share.max() < 0.9
    np.testing.assert_array_equal(remove_residual(images, 0 * removed), images)


@pytest.mark.parametrize(("times", "more"), [(0.4, 0.0), (1.2, 0.0), (1.0, 0.02)])
def test_errors_of_the_residual_do_not_spread(
    chests: tuple[np.ndarray, np.ndarray],
    painted: tuple[np.ndarray, np.ndarray],
    times: float,
    more: float,
) -> None:
    from cxr_tf.data.restoration.local_contrast import MIN_RESIDUAL, remove_residual

    images, removed = painted
    wrong = times * removed + more
    restored = np.asarray(remove_residual(images, wrong))
    was = np.abs(images - chests[0]).mean(axis=(1, 2, 3))
    left = np.abs(restored - chests[0]).mean(axis=(1, 2, 3))
    assert (left < was)[was > 1].all()
    assert restored.min() >= 0 and (restored <= images).all()
    np.testing.assert_array_equal(restored[wrong <= MIN_RESIDUAL], images[wrong <= MIN_RESIDUAL])


@pytest.mark.parametrize(("radius", "sigma"), [(1, 0.3), (3, 1.0), (12, 4.0)])
def test_gaussian_blur_matches_scipy(radius: int, sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    from cxr_tf.data.restoration.local_contrast import gaussian

    images = np.random.default_rng(0).normal(size=(2, 32, 20, 1)).astype(np.float32)
    expected = gaussian_filter(
        images.astype(float), (0, sigma, sigma, 0), radius=(0, radius, radius, 0)
    )
    found = np.asarray(gaussian(images, radius=radius, sigma=sigma))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_blur_layer_is_saved_with_its_width() -> None:
    import keras

    from cxr_tf.data.restoration.local_contrast import gaussian
    from cxr_tf.models.contrast_layers import Blur

    images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Blur(1 / 32)))
    np.testing.assert_array_equal(layer(images), gaussian(images, radius=5, sigma=2.0))
