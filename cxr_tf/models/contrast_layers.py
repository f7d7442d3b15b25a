"""Local contrast as Keras layers."""

import math
from typing import Any

import keras

from cxr_tf.data.restoration.local_contrast import gaussian, local_contrast, remove_residual


@keras.saving.register_keras_serializable("cxr_tf")
class LocalContrast(keras.Layer):
    """`local_contrast` as a layer, so that a saved model does not contain its matrices."""

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """See `local_contrast`."""
        return local_contrast(images)


@keras.saving.register_keras_serializable("cxr_tf")
class Without(keras.Layer):
    """`remove_residual` as a layer."""

    def call(self, images: keras.KerasTensor, residual: keras.KerasTensor) -> keras.KerasTensor:
        """See `remove_residual`."""
        return remove_residual(images, residual)


@keras.saving.register_keras_serializable("cxr_tf")
class Blur(keras.Layer):
    """`gaussian` as a layer; its standard deviation is a share of the side of the image."""

    def __init__(self, share: float, **layer: Any) -> None:
        super().__init__(**layer)
        self.share = share

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "share": self.share}

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """See `gaussian`."""
        sigma = self.share * images.shape[1]
        return gaussian(images, radius=math.ceil(2.5 * sigma), sigma=sigma)
