"""Tests of occlusion maps: refinement and precision."""

from pathlib import Path

import keras
import numpy as np
import pytest
from classifier_run import write_run
from random_classifier import random_classifier

from cxr_tf.config import Explain
from cxr_tf.explain import inputs
from cxr_tf.explain import maps as explain_maps
from cxr_tf.models.classifier import build_classifier, calibrated
from cxr_tf.models.occlusion import occluder


def test_refined_map_is_close_to_the_full_one_and_reports_its_error(
    bright_corner: keras.Model,
) -> None:
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    covers = occluder.cover_images(images, "air", 16)
    grid = occluder.make_grid(64, 16, 4)
    function = occluder.compiled(occluder.make_occluder(bright_corner, grid))
    targets = np.array([0, 0])
    arguments = (function, grid, images, covers, targets, "logit")
    full = explain_maps.full_maps(*arguments)
    for share, error in ((0.999, 1e-4), (0.3, 0.35)):
        maps, refinement = explain_maps.refined_maps(*arguments, share)
        errors = np.abs(maps - full).max((1, 2)) / np.abs(full).max((1, 2))
        assert refinement["largest_error"] == pytest.approx(errors.mean(), abs=1e-6)
        assert errors.max() < error
    assert refinement["computed_share"] < 0.5 and refinement["images"] == 2


def test_occlusion_of_a_bfloat16_model_equals_that_of_float32(
    tiny_backbone: str, phantoms: Path, tmp_path: Path
) -> None:
    exact = random_classifier(tiny_backbone, 64, classes=2)
    short = build_classifier(tiny_backbone, classes=2, image_size=64, precision="mixed_bfloat16")
    short.set_weights(exact.get_weights())
    short = calibrated(short, 1 / exact.get_layer("temperature").scale)
    write_run(tmp_path / "tiny", exact, str(phantoms))
    maps = {}
    for kind, model in (("float32", exact), ("bfloat16", short)):
        keras.saving.save_model(model, tmp_path / "tiny" / "model.keras")
        classifier = inputs.open_classifier(str(tmp_path / "tiny"))
        assert {x.compute_dtype for x in classifier.model.layers} == {"float32"}
        grid = occluder.make_grid(64, 16, 8)
        explain = explain_maps.map_function(
            "occlusion", classifier, grid, Explain(classifier="", fill="gray", drop="logit")
        )
        images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
        maps[kind] = explain(images, np.array([0, 1]))[0]
    np.testing.assert_allclose(maps["bfloat16"], maps["float32"], atol=1e-4)
    assert np.abs(maps["float32"]).max() > 1e-3
