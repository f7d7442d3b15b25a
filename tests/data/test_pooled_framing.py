"""Framing taken from other radiographs: it arrives as measured, and batches are reproducible."""

from pathlib import Path

import numpy as np
import pytest

from cxr_tf.data import batches
from cxr_tf.data.acquisition_statistics import align, mean_chest
from cxr_tf.data.augmentation import augment, light_borders
from cxr_tf.data.decoding import load_images


@pytest.fixture(scope="module")
def healthy(phantoms: Path) -> np.ndarray:
    """The healthy phantoms of the training split: uint8 [N, 64, 64, 1]."""
    images, _ = load_images(sorted(str(p) for p in (phantoms / "train" / "NORMAL").iterdir()), 64)
    return images


def test_an_image_takes_the_framing_of_another(healthy: np.ndarray) -> None:
    import tensorflow as tf

    own = align(healthy, mean_chest(healthy)).astype(np.float32)
    wanted = own + np.array([-0.1, 0.15, 0.03], np.float32)
    still = tf.zeros([len(healthy), 14])
    changed = augment(tf.constant(healthy), still, chests=(tf.constant(own), tf.constant(wanted)))
    found = align(changed.numpy().round().astype(np.uint8), mean_chest(healthy))
    np.testing.assert_allclose(np.median(found - wanted, axis=0), 0, atol=0.035)
    # Nothing black comes in from outside of the image.
    same = augment(tf.constant(healthy), still, chests=(tf.constant(own), tf.constant(own)))
    np.testing.assert_allclose(same.numpy(), healthy, atol=1.0)


def test_light_falls_from_the_border_that_is_named() -> None:
    import tensorflow as tf

    grey = tf.random.stateless_normal([4, 64, 64, 1], (1, 2)) * 20 + 100
    lit = (light_borders(grey, tf.eye(4)) - grey).numpy()[..., 0]
    edges = [lit[0, :4], lit[1, -4:], lit[2, :, :4], lit[3, :, -4:]]
    assert all(edge.mean() > 12 for edge in edges)
    assert all(np.abs(image[30:34, 30:34]).mean() < 1 for image in lit)


def test_batches_with_framings_depend_on_seed_epoch_and_row_alone(healthy: np.ndarray) -> None:
    chests = align(healthy, mean_chest(healthy))
    labels = np.arange(len(healthy)) % 2

    def epoch(first: int, **options: np.ndarray) -> list[np.ndarray]:
        stream = batches.training_batches(
            healthy, labels, batch_size=8, seed=3, epochs=range(first, 2), **options
        )
        return [images.numpy() for images, _ in stream]

    both, second = epoch(0, chests=chests), epoch(1, chests=chests)
    np.testing.assert_array_equal(both[len(both) // 2 :], second)
    assert np.abs(np.array(epoch(1)) - np.array(second)).mean() > 2
