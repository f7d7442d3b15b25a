"""Local contrast: what it does not know, and that an opacity is taken out of it again."""

import numpy as np
import pytest

from cxr_tf.data.sources.phantoms import phantom


@pytest.fixture(scope="module")
def chests() -> tuple[np.ndarray, np.ndarray]:
    """24 healthy phantoms float32 [24, 112, 112, 1] and their lungs."""
    drawn = [phantom("normal", seed=5, patient=i, size=112) for i in range(24)]
    images = np.stack([p.image for p in drawn])[..., None].astype(np.float32)
    return images, np.stack([p.lungs for p in drawn])[..., None].astype(np.float32)


def test_it_does_not_know_exposure_or_light(chests: tuple[np.ndarray, np.ndarray]) -> None:
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
    """The same with opacities, and by how much their local contrast is higher for it."""
    import tensorflow as tf

    from cxr_tf.data.restoration.local_contrast import local_contrast
    from cxr_tf.data.restoration.opacities import paint

    healthy, lungs = chests
    images = paint(tf.constant(healthy), tf.constant(lungs), tf.constant([1, 2], tf.int64)).numpy()
    return images, np.asarray(local_contrast(images)) - np.asarray(local_contrast(healthy))


def test_what_was_painted_is_taken_out_of_the_grey_levels(
    chests: tuple[np.ndarray, np.ndarray], painted: tuple[np.ndarray, np.ndarray]
) -> None:
    from cxr_tf.data.restoration.local_contrast import without

    images, removed = painted
    was = np.abs(images - chests[0]).mean(axis=(1, 2, 3))
    assert (was > 1).sum() >= 15
    left = np.abs(np.asarray(without(images, removed)) - chests[0]).mean(axis=(1, 2, 3))
    share = left[was > 1] / was[was > 1]
    assert np.median(share) < 0.6 and share.max() < 0.9
    np.testing.assert_array_equal(without(images, 0 * removed), images)


@pytest.mark.parametrize(("times", "more"), [(0.4, 0.0), (1.2, 0.0), (1.0, 0.02)])
def test_an_error_of_the_network_does_not_spread_over_the_image(
    chests: tuple[np.ndarray, np.ndarray],
    painted: tuple[np.ndarray, np.ndarray],
    times: float,
    more: float,
) -> None:
    from cxr_tf.data.restoration.local_contrast import LEAST_RESTORED, without

    images, removed = painted
    wrong = times * removed + more
    restored = np.asarray(without(images, wrong))
    was = np.abs(images - chests[0]).mean(axis=(1, 2, 3))
    left = np.abs(restored - chests[0]).mean(axis=(1, 2, 3))
    assert (left < was)[was > 1].all()
    assert restored.min() >= 0 and (restored <= images).all()
    np.testing.assert_array_equal(
        restored[wrong <= LEAST_RESTORED], images[wrong <= LEAST_RESTORED]
    )


@pytest.mark.parametrize(("radius", "sigma"), [(1, 0.3), (3, 1.0), (12, 4.0)])
def test_blur_is_scipys(radius: int, sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    from cxr_tf.data.restoration.local_contrast import gaussian

    images = np.random.default_rng(0).normal(size=(2, 32, 20, 1)).astype(np.float32)
    expected = gaussian_filter(
        images.astype(float), (0, sigma, sigma, 0), radius=(0, radius, radius, 0)
    )
    found = np.asarray(gaussian(images, radius=radius, sigma=sigma))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_blur_of_a_map_is_a_layer_that_is_saved_by_its_width() -> None:
    import keras

    from cxr_tf.data.restoration.local_contrast import gaussian
    from cxr_tf.models.contrast_layers import Blur

    images = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Blur(1 / 32)))
    np.testing.assert_array_equal(layer(images), gaussian(images, radius=5, sigma=2.0))
