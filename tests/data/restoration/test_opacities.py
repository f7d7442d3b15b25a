"""Painted opacities: position, frequency and repeatability."""

import numpy as np
import pytest

from cxr_tf.data.sources.phantoms import phantom


@pytest.fixture(scope="module")
def chests() -> tuple[np.ndarray, np.ndarray]:
    """24 healthy phantoms uint8 [24, 96, 96, 1] and their true lungs bool [24, 96, 96]."""
    drawn = [phantom("normal", seed=5, patient=i, size=96) for i in range(24)]
    return np.stack([p.image for p in drawn])[..., None], np.stack([p.lungs for p in drawn])


def test_lung_fields_overlap_the_true_lungs(chests: tuple[np.ndarray, np.ndarray]) -> None:
    from cxr_tf.data.restoration.opacities import lung_fields

    images, lungs = chests
    found = lung_fields(images)
    assert found.dtype == np.uint8 and found.shape == images.shape
    found = found[..., 0] >= 128
    overlap = (found & lungs).sum(axis=(1, 2)) / (found | lungs).sum(axis=(1, 2))
    assert np.median(overlap) > 0.6
    assert overlap.min() > 0.3


def test_paint_stays_in_the_lungs_and_brightens(chests: tuple[np.ndarray, np.ndarray]) -> None:
    import tensorflow as tf

    from cxr_tf.data.restoration.opacities import paint

    images, lungs = chests
    healthy = tf.constant(images, tf.float32)
    painted = paint(
        healthy, tf.constant(lungs[..., None], tf.float32), tf.constant([1, 2], tf.int64)
    )
    rise = (painted - healthy).numpy()[..., 0]
    assert np.all(rise[~lungs] == 0)
    assert rise.min() >= -1e-3 and rise.max() > 20
    again = paint(healthy, tf.constant(lungs[..., None], tf.float32), tf.constant([1, 2], tf.int64))
    other = paint(healthy, tf.constant(lungs[..., None], tf.float32), tf.constant([1, 3], tf.int64))
    np.testing.assert_array_equal(again, painted)
    assert not np.array_equal(other, painted)


@pytest.mark.parametrize("kind", ["blobs", "focus", "haze"])
def test_regions_scale_with_extent(kind: str) -> None:
    """Foci are measured by their width, and regions that fill the image by their gradients."""
    import tensorflow as tf

    from cxr_tf.data.restoration.opacities import opacity_regions

    low, high = {"blobs": (0, 0.35), "focus": (0.35, 0.60), "haze": (0.72, 1)}[kind]

    def width(extent: float) -> float:
        region, kinds = opacity_regions(
            tf.constant(400), 96, tf.constant([3, 3], tf.int64), softness=0.5, extent=extent
        )
        of_kind = (kinds.numpy().ravel() >= low) & (kinds.numpy().ravel() < high)
        chosen = region.numpy()[of_kind, ..., 0]
        if kind == "focus":
            # Where it is widest, and away from the border, which would cut it off.
            rows = (chosen > 0.5).any(axis=2)
            inside = ~(rows[:, 0] | rows[:, -1]) & rows.any(axis=1)
            return float(rows[inside].sum(axis=1).mean())
        return float(chosen.std() / np.abs(np.diff(chosen, axis=1)).mean())

    narrow, usual, wide = (width(extent) for extent in (0.5, 1.0, 2.0))
    assert narrow < 0.75 * usual < 0.85 * wide, (narrow, usual, wide)


def test_four_images_in_five_are_painted(chests: tuple[np.ndarray, np.ndarray]) -> None:
    import tensorflow as tf

    from cxr_tf.data.restoration.opacities import paint

    images, lungs = chests
    many = tf.constant(np.repeat(images, 20, axis=0), tf.float32)
    mask = tf.constant(np.repeat(lungs, 20, axis=0)[..., None], tf.float32)
    rise = (paint(many, mask, tf.constant([7, 0], tf.int64)) - many).numpy()
    share = (rise.max(axis=(1, 2, 3)) > 0).mean()
    assert share == pytest.approx(0.8, abs=0.08)  # 480 draws: four standard errors


def test_the_residual_is_what_was_painted(chests: tuple[np.ndarray, np.ndarray]) -> None:
    """The input minus the residual is the local contrast of the healthy image."""
    import tensorflow as tf

    from cxr_tf.data.restoration.local_contrast import local_contrast
    from cxr_tf.data.restoration.opacities import paint, restoration_pair

    images, lungs = chests
    healthy = tf.constant(images, tf.float32)
    mask = tf.constant(lungs[..., None], tf.float32)
    seed = tf.constant([4, 4], tf.int64)
    inputs, targets = restoration_pair(healthy, mask, seed)
    painted = paint(healthy, mask, seed)
    np.testing.assert_array_equal(inputs, local_contrast(painted))
    np.testing.assert_allclose(inputs - targets["residual"], local_contrast(healthy), atol=1e-5)
    marked = targets["lesion_mask"].numpy() > 0
    np.testing.assert_array_equal(marked, targets["residual"].numpy() > 0)
    assert marked[lungs].mean() > 2 * marked[~lungs].mean() > 0


def test_restoration_batches_are_resumable(chests: tuple[np.ndarray, np.ndarray]) -> None:
    from cxr_tf.data.restoration.opacities import lung_fields, restoration_batches

    images, _ = chests
    lungs = lung_fields(images)

    def stream(epochs: range) -> list[np.ndarray]:
        batches = restoration_batches(images, lungs, batch_size=8, seed=3, epochs=epochs)
        return [x.numpy() for x, _ in batches]

    whole, resumed = stream(range(3)), stream(range(2, 3))
    assert len(whole) == 9 and len(resumed) == 3
    np.testing.assert_array_equal(whole[6:], resumed)
    assert not np.array_equal(whole[0], whole[3])
