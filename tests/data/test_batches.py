"""Batches: each row occurs once per epoch, repeatably and independently of the batch size."""

import numpy as np
import pytest

from cxr_tf.data import batches as data_batches

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 64, 64, 1)).astype(np.uint8)


LABELS = np.arange(10)  # each image has a class of its own, so that labels identify rows


def batches(epochs: range, **changed) -> list[tuple[np.ndarray, np.ndarray]]:
    options = {"batch_size": 3, "seed": 5, "strength": 1.0} | changed
    stream = data_batches.training_batches(IMAGES, LABELS, epochs=epochs, **options)
    return list(stream.as_numpy_iterator())


def by_row(found: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, np.ndarray]:
    return {int(y): x for xs, ys in found for x, y in zip(xs, ys, strict=True)}


def test_an_epoch_does_not_depend_on_where_the_stream_starts() -> None:
    whole, later = batches(range(4)), batches(range(2, 4))
    steps = data_batches.steps_per_epoch(10, 3)
    assert len(whole) == 4 * steps
    for (x, y), (again, same) in zip(whole[2 * steps :], later, strict=True):
        np.testing.assert_array_equal(x, again)
        np.testing.assert_array_equal(y, same)


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    one, five = by_row(batches(range(1), batch_size=1)), by_row(batches(range(1), batch_size=5))
    assert one.keys() == five.keys() == set(range(10))
    for row in one:  # not bit for bit: vectorised powers round differently at the end of a batch
        np.testing.assert_allclose(one[row], five[row], atol=0.05)
    other = by_row(batches(range(1), batch_size=5, seed=6))
    assert all(np.abs(other[row] - five[row]).mean() > 1 for row in five)


def test_every_epoch_is_a_new_permutation() -> None:
    orders = [
        tuple(np.concatenate([y for _, y in batches(range(e, e + 1), batch_size=2)]))
        for e in range(6)
    ]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 6
    short = batches(range(1), batch_size=4)
    assert [len(y) for _, y in short] == [4, 4]
    assert len(np.unique(np.concatenate([y for _, y in short]))) == 8


def test_every_epoch_draws_new_augmentations() -> None:
    first, second = (
        by_row(batches(range(1), batch_size=1)),
        by_row(batches(range(1, 2), batch_size=1)),
    )
    assert all(np.abs(first[row] - second[row]).mean() > 1 for row in first)


@pytest.mark.parametrize("strong", [False, True])
def test_strength_0_only_repeats_the_channel(strong: bool) -> None:
    for x, y in batches(range(1), strength=0.0, strong=strong):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, np.repeat(IMAGES[y], 3, axis=-1), atol=1e-3)
    clean = np.concatenate(list(data_batches.evaluation_batches(IMAGES, batch_size=4)))
    np.testing.assert_array_equal(clean, IMAGES)


def test_the_stress_seed_determines_the_perturbed_copy() -> None:
    def stressed(batch_size: int, seed: int = 3) -> np.ndarray:
        stream = data_batches.evaluation_batches(IMAGES, batch_size=batch_size, stress_seed=seed)
        return np.concatenate(list(stream))

    np.testing.assert_array_equal(stressed(3), stressed(3))
    # Vectorised powers round slightly differently at the end of a batch.
    np.testing.assert_allclose(stressed(3), stressed(10), atol=0.05)
    assert (stressed(3) != stressed(3, seed=4)).mean() > 0.5
    assert (stressed(3) != IMAGES).mean() > 0.5
