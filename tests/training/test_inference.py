"""Inference functions of several models, each of which is traced once."""

import gc
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.training.inference import compiled


def test_several_models_cause_no_retracing_warning(caplog: pytest.LogCaptureFixture) -> None:
    images = tf.ones([2, 8, 8, 1])
    with caplog.at_level(logging.WARNING, "tensorflow"):
        for factor in range(8):
            inputs = keras.Input([8, 8, 1])
            function = compiled(keras.Model(inputs, inputs * float(factor)))
            np.testing.assert_allclose(function(images), factor)
    assert "retracing" not in caplog.text


def test_function_keeps_the_variables_of_its_model() -> None:
    inputs = keras.Input([8, 8, 1])
    function = compiled(keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs)))
    gc.collect()
    assert np.isfinite(function(tf.ones([1, 8, 8, 1]))).all()
