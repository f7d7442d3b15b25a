"""Tests of occlusion heatmaps."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_classifier import drawings, random_classifier

from cxr_tf.errors import UserError
from cxr_tf.models import backbones
from cxr_tf.models.classifier import build_classifier
from cxr_tf.models.layer_graph import in_float32, read_network
from cxr_tf.models.occlusion import occluder as occlusion_occluder
from cxr_tf.models.occlusion import windows


def with_bands(occluder: occlusion_occluder.Occluder) -> occlusion_occluder.Occluder:
    """Return the occluder with a plan in bands, as for large images, if it has a plan."""
    starts = occluder.grid.starts
    bands = windows.bands(len(starts), windows.SMALLEST_WITH_BANDS)
    plan = windows.make_plan(occluder.network, starts, occluder.grid.patch, bands)
    return dataclasses.replace(occluder, plan=occluder.plan and plan)


@pytest.mark.parametrize(
    ("name", "size", "patch", "stride"),
    [("vgg16", 70, 11, 7), ("resnet50", 96, 15, 13), ("alexnet", 96, 9, 7), ("tiny", 65, 7, 3)],
)
def test_incremental_occlusion_equals_plain_occlusion(
    name: str,
    size: int,
    patch: int,
    stride: int,
    tiny_backbone: str,
) -> None:
    model = random_classifier(name, size)
    images = drawings(2, size)
    grid = occlusion_occluder.make_grid(size, patch, stride)
    covers = occlusion_occluder.cover_images(images, "noise", patch)
    # Corners, borders and inner patches, unordered.
    last = grid.count - 1
    places = np.array([0, last, *range(3, last, last // 9), len(grid.starts) - 1], np.int32)
    results = {}
    for way in ("plain", "incremental"):
        # A batch size that does not divide the number of patches.
        occluder = with_bands(occlusion_occluder.make_occluder(model, grid, batch_size=7, way=way))
        results[way] = occlusion_occluder.compiled(occluder)(images, covers, places)
    plan = occluder.plan
    assert plan is not None and plan.share < 0.9  # windows, not whole maps, are compared
    before = model(images, training=False).numpy()
    assert before.min() > 0.02 and before.max() < 0.96
    plain, exact = (tf.nn.softmax(results[way][1]).numpy() for way in ("plain", "incremental"))
    # Covering must change the probabilities for the comparison to mean anything.
    assert np.abs(plain - before[:, None]).max() > 5e-3
    np.testing.assert_allclose(exact, plain, atol=1e-4)
    np.testing.assert_allclose(tf.nn.softmax(results["incremental"][0]), before, atol=1e-5)
    # The plain method equals a loop over patches.
    network = read_network(model)
    x = network.standardise(images).numpy()
    cover = network.standardise_as(images, covers).numpy()
    side = len(grid.starts)
    for k in (0, 1, 4, 7):
        place = places[k]
        row, column = grid.starts[place // side], grid.starts[place % side]
        inside = (slice(None), slice(row, row + patch), slice(column, column + patch))
        by_hand = x.copy()
        by_hand[inside] = cover[inside]
        np.testing.assert_allclose(tf.nn.softmax(network.scores(by_hand)), plain[:, k], atol=1e-5)


def test_covering_keeps_the_standardisation_of_the_image() -> None:
    """Patches are covered after the standardisation, with the statistics of the plain image."""
    model = random_classifier("alexnet", 64)
    network = read_network(model)
    images = drawings(2, 64)
    np.testing.assert_allclose(
        network.standardise(images), backbones.standardise(images), atol=1e-4
    )
    np.testing.assert_allclose(
        network.standardise_as(images, images), network.standardise(images), atol=1e-3
    )
    mean = network.standardise_as(images, occlusion_occluder.cover_images(images, "mean", 8))
    np.testing.assert_allclose(mean, backbones.GRAY_MEAN, atol=1e-3)
    air = network.standardise_as(images, occlusion_occluder.cover_images(images, "air", 8))
    np.testing.assert_allclose(air, backbones.GRAY_MEAN - backbones.GRAY_SPREAD, atol=1.0)


def test_heatmap_of_a_one_corner_network_is_hot_in_that_corner_only() -> None:
    images = keras.Input((64, 64, 3), name="images")
    corner = keras.layers.Cropping2D(((40, 8), (8, 40)))(images)
    bright = keras.layers.GlobalAveragePooling2D()(corner / 64 - 2)[:, :1]
    logits = keras.layers.Identity(name="logits")(keras.ops.concatenate([-bright, bright], axis=1))
    scaled = keras.layers.Rescaling(1.0, name="temperature")(logits)
    model = keras.Model(images, keras.layers.Softmax(name="probabilities")(scaled))
    grid = occlusion_occluder.make_grid(64, 8, 4)
    bright_images = np.full((1, 64, 64, 3), 200, np.float32)
    covers = np.zeros_like(bright_images)
    places = occlusion_occluder.all_places(grid)
    plain, covered = occlusion_occluder.compiled(
        occlusion_occluder.make_occluder(model, grid, batch_size=50)
    )(bright_images, covers, places)
    for kind in ("probability", "logit"):
        heat = occlusion_occluder.heatmaps(
            grid, occlusion_occluder.drop(plain, covered, [1], kind)
        ).numpy()[0]
        hot = np.zeros((64, 64), bool)
        hot[40:56, 8:24] = True
        assert heat[hot].min() > 1e-3
        # A pixel is hot only if a patch over it touches the corner.
        assert np.abs(heat[:32]).max() < 1e-6 and np.abs(heat[:, 32:]).max() < 1e-6
        # For the other class the drop has the opposite sign.
        other = occlusion_occluder.heatmaps(
            grid, occlusion_occluder.drop(plain, covered, [0], kind)
        ).numpy()[0]
        np.testing.assert_allclose(other, -heat, atol=1e-5)
    # The log odds of two classes are the difference of their logits.
    difference = (plain[:, 1] - plain[:, 0]) - (covered[:, 5, 1] - covered[:, 5, 0])
    np.testing.assert_allclose(
        occlusion_occluder.drop(plain, covered, [1], "logit")[:, 5], difference, atol=1e-4
    )


def test_log_odds_drop_where_the_probability_saturates() -> None:
    plain = tf.constant([[0.0, 30.0, 1.0]])
    covered = tf.constant([[[0.0, 25.0, 1.0]]])
    assert abs(float(occlusion_occluder.drop(plain, covered, [1], "probability")[0, 0])) < 1e-6
    assert float(occlusion_occluder.drop(plain, covered, [1], "logit")[0, 0]) == pytest.approx(
        5, abs=1e-4
    )


# ---------------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("size", "patch", "stride"), [(224, 32, 16), (144, 20, 10), (128, 18, 9), (64, 10, 5)]
)
def test_default_grid_depends_on_the_image_size(size: int, patch: int, stride: int) -> None:
    assert occlusion_occluder.make_grid(size) == occlusion_occluder.Grid(size, patch, stride)


@pytest.mark.parametrize(("patch", "stride"), [(13, 5), (9, 9), (64, 1), (1, 1)])
def test_grid_covers_every_pixel_and_keeps_a_constant_drop(patch: int, stride: int) -> None:
    grid = occlusion_occluder.make_grid(64, patch, stride)
    assert grid.starts[0] == 0 and grid.starts[-1] + patch == 64
    assert np.all(np.diff(grid.starts) <= stride)
    assert grid.coverage.sum(axis=0).tolist() == [patch] * len(grid.starts)
    heat = occlusion_occluder.heatmaps(grid, tf.fill([2, grid.count], 0.25)).numpy()
    np.testing.assert_allclose(heat, np.full((2, 64, 64), 0.25), atol=1e-6)


def test_heat_of_a_pixel_is_the_mean_over_its_patches() -> None:
    grid = occlusion_occluder.make_grid(10, 4, 3)
    drops = np.arange(grid.count, dtype=np.float32)
    heat = occlusion_occluder.heatmaps(grid, drops[None]).numpy()[0]
    side = len(grid.starts)
    for row, column in ((0, 0), (3, 5), (9, 3), (6, 6)):
        over = [
            drops[i * side + j]
            for i, y in enumerate(grid.starts)
            for j, x in enumerate(grid.starts)
            if y <= row < y + 4 and x <= column < x + 4
        ]
        assert heat[row, column] == pytest.approx(np.mean(over))


@pytest.mark.parametrize(
    ("patch", "stride", "message"),
    [(65, 8, "between 1 and 64"), (0, 1, "between 1 and 64"), (8, 0, "stride must be at least 1"),
     (8, -4, "stride must be at least 1"), (8, 9, "larger than --patch 8"),
     (None, 65, "--stride 65 is larger than the side of the model's input, 64")],
)  # fmt: skip
def test_invalid_grids_raise(patch: int | None, stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        occlusion_occluder.make_grid(64, patch, stride)


# ---------------------------------------------------------------------- fills, coarse to fine


def test_fills_have_the_documented_values() -> None:
    images = drawings(2, 64)
    mean, spread = images.mean((1, 2, 3)), images.std((1, 2, 3))
    flat = {
        f: occlusion_occluder.cover_images(images, f, 16)[:, 5, 9, 0]
        for f in ("mean", "air", "gray")
    }
    np.testing.assert_allclose(flat["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(flat["air"], mean - spread, rtol=1e-4)
    assert flat["gray"].tolist() == [127.5, 127.5]
    # `auto` is air for opacities and the mean for other classes.
    assert occlusion_occluder.is_opacity(("normal", "Pneumonia", "hernia")).tolist() == [
        False,
        True,
        False,
    ]
    auto = occlusion_occluder.cover_images(images, "auto", 16, opaque=np.array([True, False]))[
        :, 0, 0, 0
    ]
    np.testing.assert_allclose(auto, [mean[0] - spread[0], mean[1]], rtol=1e-4)
    blurred, noise = (occlusion_occluder.cover_images(images, f, 16) for f in ("blur", "noise"))
    assert np.all(blurred.std((1, 2, 3)) < 0.4 * spread)
    np.testing.assert_allclose(noise.mean((1, 2, 3)), mean, atol=10)
    assert np.all(noise[..., 0] == noise[..., 2])
    np.testing.assert_array_equal(noise, occlusion_occluder.cover_images(images, "noise", 16))
    assert np.any(noise != occlusion_occluder.cover_images(images, "noise", 16, seed=1))
    with pytest.raises(UserError, match="unknown fill"):
        occlusion_occluder.cover_images(images, "black", 16)


@pytest.mark.parametrize(("size", "patch", "stride"), [(64, 16, 4), (60, 14, 5), (64, 16, 16)])
def test_refining_every_patch_gives_the_full_grid(size: int, patch: int, stride: int) -> None:
    grid = occlusion_occluder.make_grid(size, patch, stride)
    coarse = occlusion_occluder.coarse_places(grid)
    side = len(grid.starts)
    assert np.all(grid.coverage[:, np.unique(coarse // side)].sum(axis=1) >= 1)
    # A linear drop is interpolated exactly.
    row, column = np.divmod(np.arange(grid.count), side)
    drops = (2.0 * row - column).astype(np.float32)
    np.testing.assert_allclose(
        occlusion_occluder.interpolate(grid, drops[coarse]), drops, atol=1e-4
    )
    everything = occlusion_occluder.places_to_refine(grid, drops[coarse], 1.0)
    assert sorted([*coarse, *everything]) == list(range(grid.count))
    few = occlusion_occluder.places_to_refine(grid, drops[coarse], 0.1)
    others = np.setdiff1d(np.arange(grid.count), coarse)
    assert len(few) == min(len(others), round(0.1 * grid.count))
    if len(few):  # the hottest ones
        assert drops[few].min() >= np.delete(drops[others], np.searchsorted(others, few)).max()


def test_plan_predicts_the_share_of_multiplications(tiny_backbone: str) -> None:
    model = build_classifier("vgg16", classes=2, image_size=224)
    network = read_network(model)
    grid = occlusion_occluder.make_grid(224)
    share = windows.make_plan(network, grid.starts, grid.patch).share
    assert share < 0.165  # five of six multiplications are saved
    assert windows.make_plan(network, np.arange(3), 220).share > 0.95
    assert (
        occlusion_occluder.make_occluder(model, occlusion_occluder.make_grid(224, 220, 2)).plan
        is None
    )
    assert occlusion_occluder.make_occluder(model, grid).plan is not None


@pytest.mark.parametrize("chosen", [225, 23, 1])
def test_batches_contain_patches_of_one_band(tiny_backbone: str, chosen: int) -> None:
    grid = occlusion_occluder.make_grid(64, 10, 4)
    model = random_classifier(tiny_backbone, 64)
    occluder = with_bands(
        occlusion_occluder.make_occluder(model, grid, batch_size=7, way="incremental")
    )
    places = np.random.default_rng(0).permutation(occlusion_occluder.all_places(grid))[:chosen]
    assert occluder.plan is not None
    order, splits = (x.numpy() for x in occluder._batches(tf.constant(places), occluder.plan.bands))
    assert sorted(order) == list(range(len(places)))
    assert splits[0] == 0 and splits[-1] == len(places)
    far = np.minimum(np.arange(15), 14 - np.arange(15)) // 3
    for start, end in itertools.pairwise(splits):
        assert 1 <= end - start <= 7
        for part in np.divmod(places[order[start:end]], 15):
            assert len(set(far[part])) == 1


def test_in_float32_converts_a_bfloat16_model() -> None:
    short = random_classifier("vgg16", 64, precision="mixed_bfloat16")
    exact = in_float32(short)
    assert exact is not short and in_float32(exact) is exact
    assert {x.compute_dtype for x in exact.layers} == {"float32"}
    images = drawings(2, 64)
    np.testing.assert_allclose(exact(images), short(images), atol=0.05)
    network = read_network(exact)
    np.testing.assert_allclose(
        tf.nn.softmax(network.scores(network.standardise(images))), exact(images), atol=1e-5
    )
