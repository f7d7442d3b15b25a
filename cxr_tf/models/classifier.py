"""Classifiers: image -> preprocessing -> backbone -> embedding -> logits -> probabilities.

    model = build_classifier("vgg16", classes=2, image_size=224)
    logits_of(model)          # the same layers up to the logits, for training
    model = calibrated(model, temperature=1.7, bias=np.array([0.2, -0.2]))

The model is one flat graph that maps float32 [N, S, S, 3] in 0..255 to probabilities [N, C]. The
layers `embedding`, `logits` and `probabilities` have the same names for every backbone.
"""

import keras
import numpy as np

from cxr_tf.models.backbones import backbone


def build_classifier(
    name: str,
    *,
    classes: int,
    image_size: int,
    dropout: float = 0.3,
    temperature: float = 1.0,
    precision: str = "float32",
) -> keras.Model:
    """Build an untrained classifier; `weights.load_weights` and training set its weights.

    `precision` is a Keras dtype policy. Weights are float32 with every policy, so that a model
    trained in mixed precision can be rebuilt in float32 for export with `set_weights`.
    """
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        images = keras.Input((image_size, image_size, 3), name="images", dtype="float32")
        features = backbone(name).build(images)
        features = keras.layers.Identity(name="embedding", dtype="float32")(features)
        x = keras.layers.Dropout(dropout, name="embedding_dropout", dtype="float32")(features)
        logits = keras.layers.Dense(classes, name="logits", dtype="float32")(x)
        return keras.Model(images, _probabilities(logits, temperature), name=name)
    finally:
        keras.config.set_dtype_policy(previous)


def logits_of(model: keras.Model) -> keras.Model:
    """Return the classifier up to its logits [N, C]; shares all layers."""
    return keras.Model(model.input, model.get_layer("logits").output, name=model.name)


def embedding_of(model: keras.Model) -> keras.Model:
    """Return the classifier up to its embedding [N, D]; shares all layers."""
    return keras.Model(model.input, model.get_layer("embedding").output, name=model.name)


def calibrated(
    model: keras.Model, temperature: float, bias: np.ndarray | None = None
) -> keras.Model:
    """Return the classifier with calibrated probabilities, softmax(logits / temperature + bias).

    bias: float [C], zeros by default. The layers up to the logits are shared with `model`. See
    `metrics.fit_calibration`.
    """
    logits = model.get_layer("logits").output
    return keras.Model(model.input, _probabilities(logits, temperature, bias), name=model.name)


def _probabilities(
    logits: keras.KerasTensor, temperature: float, bias: np.ndarray | None = None
) -> keras.KerasTensor:
    offset = 0.0 if bias is None else np.asarray(bias).tolist()
    scale = keras.layers.Rescaling(
        1.0 / temperature, offset=offset, name="temperature", dtype="float32"
    )
    return keras.layers.Softmax(name="probabilities", dtype="float32")(scale(logits))
