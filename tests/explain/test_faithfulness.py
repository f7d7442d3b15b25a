"""Tests of the measures of faithfulness."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from cxr_tf import metrics
from cxr_tf.config import Explain
from cxr_tf.explain import faithfulness, measures
from cxr_tf.explain import maps as explain_maps
from cxr_tf.models.occlusion import occluder


def test_insertion_and_deletion_rank_true_random_and_inverted_maps(
    bright_corner: keras.Model,
) -> None:
    images = np.zeros((1, 64, 64, 3), np.float32)
    images[:, :32, :32] = 255
    true = np.zeros((1, 64, 64), np.float32)
    true[:, :32, :32] = 1
    areas = faithfulness.insertion_deletion(bright_corner, batch_size=8)
    areas_of = {
        name: [float(a[0]) for a in areas(images, maps, np.array([1]))]
        for name, maps in {
            "true": true,
            "false": 1 - true,
            "random": faithfulness.random_maps(1, 64),
        }.items()
    }
    assert areas_of["true"][0] > areas_of["random"][0] > areas_of["false"][0]  # insertion
    assert areas_of["true"][1] < areas_of["random"][1] < areas_of["false"][1]  # deletion
    assert areas_of["true"][1] < 0.35 and areas_of["false"][1] > 0.7


def test_ranks_are_a_permutation_with_ties_in_random_order() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[10, 20], heat[3, 4] = 2, 1
    rank = faithfulness.ranks(heat)
    assert sorted(rank.ravel()) == list(range(64 * 64))
    assert (rank[10, 20], rank[3, 4]) == (0, 1)
    below, above = rank[32:].mean(), rank[:32].mean()
    assert abs(below - above) < 100  # a sweep from the top would give 2048


def test_shuffled_weights_are_restored_and_a_constant_map_is_insensitive(
    bright_corner: keras.Model,
) -> None:
    model = bright_corner
    before = [w.copy() for w in model.get_weights()]
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    grid = occluder.make_grid(64, 16, 16)
    function = occluder.compiled(occluder.make_occluder(model, grid))

    def explain() -> np.ndarray:
        plain, covered = function(images, np.zeros_like(images), occluder.all_places(grid))
        return occluder.heatmaps(grid, occluder.drop(plain, covered, [1], "probability")).numpy()

    class Stopped(Exception):
        pass

    with pytest.raises(Stopped), faithfulness.shuffled_weights(model, model.layers):
        raise Stopped
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    correlations = faithfulness.sensitivity_to_weights(model, explain, explain())
    assert set(correlations) == {"last_layer", "all_layers"}
    # A method that ignores the weights has a correlation of 1.
    constant = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    blind = faithfulness.sensitivity_to_weights(model, lambda: constant, constant)
    assert blind == {"last_layer": 1.0, "all_layers": 1.0}
    assert faithfulness.rank_correlation(constant, np.ones_like(constant)) == 0.0


def test_pointing_game_and_shares_of_heat_match_a_drawn_map() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[20:30, 40:50] = 1
    mask = np.zeros((64, 64), bool)
    mask[24:26, 44:46] = True
    assert metrics.hottest_pixel(heat) in {(24, 44), (25, 45), (24, 45), (25, 44)}
    assert metrics.pointing_hits(heat[None], mask[None])[0]
    away = np.roll(mask, 5, axis=0)
    hits = [metrics.pointing_hits(heat[None], away[None], tolerance=t)[0] for t in (3, 6)]
    assert hits == [False, True]
    heat[0] = -5  # negative values are not heat
    assert faithfulness.share_inside(heat, mask) == pytest.approx(4 / 100)
    assert np.isnan(faithfulness.share_inside(-np.abs(heat), mask))
    outside = faithfulness.outside_chest(64)
    assert outside[0].all() and outside[:, -1].all() and not outside[12:52, 12:52].any()
    assert outside[11, 11] and not outside[11, 12] and not outside[4, 32]
    np.testing.assert_array_equal(outside, outside[::-1, ::-1].T)


def test_pointing_game_is_reported_with_and_without_tolerance() -> None:

    from cxr_tf.models.occlusion import occluder

    maps, masks = np.zeros((3, 64, 64)), np.zeros((3, 64, 64), bool)
    maps[:, 30, 30] = 1.0
    masks[0, 28:33, 28:33] = True  # hit
    masks[1, 28:33, 34:39] = True  # missed by 4 pixels
    masks[2, 28:33, 50:55] = True  # missed by 20 pixels
    labels = np.ones(3, int)
    row = measures.measure(
        "random",
        explain_maps.Explained("random", maps, 0.0, {}),
        SimpleNamespace(labels=labels, masks=masks),
        SimpleNamespace(size=64, classes=("normal", "pneumonia")),
        labels,
        labels,
        occluder.make_grid(64),  # a stride of 5 pixels
        Explain(classifier=""),
    )
    assert row["phantoms"] == 3
    assert row["pointing_game"] == pytest.approx(2 / 3)
    assert row["pointing_game_exact"] == pytest.approx(1 / 3)
