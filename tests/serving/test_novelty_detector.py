"""Tests of the novelty and the prediction sets that an exported classifier returns."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from random_classifier import random_classifier

from cxr_tf import metrics
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.data.loading import open_catalog
from cxr_tf.models.classifier import embedding_of
from cxr_tf.serving import export, loading, novelty

CLASSES = ("normal", "bacterial", "viral")

SET_THRESHOLDS = np.array([0.3, 0.0, 0.35])


@pytest.fixture(scope="module")
def data(phantoms: Path) -> ImageDataset:
    catalog, images = decode_catalog(open_catalog(str(phantoms)), 64, skip=False)
    return ImageDataset(catalog, images, catalog.labels("three_class"), CLASSES)


@pytest.fixture(scope="module")
def fitted(tiny_backbone: str, data: ImageDataset) -> tuple:
    model = random_classifier(tiny_backbone, 64)
    return model, novelty.fit_detector(model, data.split("train"), data.split("val"))


@pytest.fixture(scope="module")
def served(fitted: tuple, tmp_path_factory: pytest.TempPathFactory) -> loading.ServedModel:
    model, detector = fitted
    folder = export.export_classifier(
        model,
        tmp_path_factory.mktemp("models") / "tiny",
        classes=CLASSES,
        threshold=0.5,
        card={"kind": "classifier", "task": "three_class", "classes": CLASSES, "image_size": 64},
        set_thresholds=SET_THRESHOLDS,
        detector=detector,
    )
    return loading.load_served(str(folder))


def test_served_novelty_is_the_larger_of_both_distances_over_their_limits(
    fitted: tuple, served: loading.ServedModel, data: ImageDataset
) -> None:
    model, detector = fitted
    test = data.split("test")
    rgb = np.repeat(test.images, 3, axis=3).astype(np.float32)
    embeddings = np.asarray(embedding_of(model)(rgb, training=False))
    pixels = novelty.statistics_of(test.images)
    expected = np.maximum(
        metrics.mahalanobis(detector.embedding, embeddings).min(axis=1) / detector.embedding_limit,
        metrics.mahalanobis(detector.pixels, pixels)[:, 0] / detector.pixel_limit,
    )
    outputs = served.predict(test.catalog.paths)
    np.testing.assert_allclose(outputs["novelty"], expected, rtol=1e-3)
    np.testing.assert_array_equal(outputs["is_novel"], outputs["novelty"] > 1)
    # From decoded images as from files.
    tensors = served.signature("tensor")(images=tf.constant(rgb[:4]))
    np.testing.assert_allclose(tensors["novelty"], expected[:4], rtol=1e-3)
    np.testing.assert_array_equal(tensors["prediction_set"], outputs["prediction_set"][:4])


def test_ninety_nine_percent_of_validation_images_are_accepted(
    fitted: tuple, served: loading.ServedModel, data: ImageDataset
) -> None:
    outputs = served.predict(data.split("val").catalog.paths)
    allowed = np.ceil(0.01 * len(outputs["novelty"]))
    assert (outputs["novelty"] > 1 + 1e-4).sum() <= allowed
    assert fitted[1].pass_rate >= 0.99


@pytest.mark.parametrize("kind", ["noise", "upside down", "inverted"])
def test_images_that_are_not_chest_radiographs_are_novel(
    served: loading.ServedModel, data: ImageDataset, kind: str
) -> None:
    images = data.split("test").images
    changed = {
        "noise": np.random.default_rng(0).integers(0, 256, (6, 64, 64, 1), np.uint8),
        "upside down": images[:, ::-1],
        "inverted": 255 - images,
    }[kind]
    files = [tf.io.encode_png(image).numpy() for image in changed]
    novel = served.predictor("serving_default")(files)["is_novel"]
    assert novel.mean() > 0.9


def test_prediction_set_holds_the_classes_above_their_thresholds(
    served: loading.ServedModel, data: ImageDataset
) -> None:
    outputs = served.predict(data.split("test").catalog.paths)
    expected = outputs["probabilities"] >= SET_THRESHOLDS.astype(np.float32)
    np.testing.assert_array_equal(outputs["prediction_set"], expected)
    assert outputs["prediction_set"][:, 1].all()
    assert 0 < outputs["prediction_set"].sum(axis=1).mean() < 3


def test_statistics_of_pixels_do_not_depend_on_the_number_of_channels_or_the_batch() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 80, 80, 1)).astype(np.float32)
    whole = novelty.pixel_statistics(tf.constant(images)).numpy()
    alone = novelty.pixel_statistics(tf.constant(images[1:2])).numpy()
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-4, atol=1e-5)
    assert np.isfinite(novelty.pixel_statistics(tf.zeros((1, 80, 80, 1))).numpy()).all()


def test_novelty_on_openvino_equals_that_on_tensorflow(
    served: loading.ServedModel, data: ImageDataset
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    fast = loading.load_served(str(served.folder), engine="openvino")
    assert fast.engine_for("serving_default") == "openvino"
    paths = data.split("test").catalog.paths
    found, expected = fast.predict(paths), served.predict(paths)
    np.testing.assert_allclose(found["novelty"], expected["novelty"], rtol=1e-3)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-4)
    np.testing.assert_array_equal(found["prediction_set"], expected["prediction_set"])
