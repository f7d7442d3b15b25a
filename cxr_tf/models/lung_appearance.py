"""A normative model of the lungs: their expected appearance, given the rest of the radiograph.

    appearance = LungAppearanceModel(image_size=224)
    appearance.fit(images[None], lungs, coded=1)    # healthy images only
    errors = appearance(images)                     # [N, 16, 16, 3], in standard deviations

A linear model that does not see the lungs: it encodes the rest of the radiograph (exposure,
framing, build, sharpness) in a few numbers, and predicts from them the brightness and fine detail
of each cell of the lungs. An opacity is brighter than predicted and hides the vessels. The code is
short on purpose: with a longer one, or a deep network, the prediction for an unusual chest adapts
to the disease, and the errors become smaller.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from cxr_tf.data.restoration.local_contrast import gaussian, local_contrast

# Cells per side: an opacity is larger than a sixteenth of the image.
GRID = 16

# Standard deviations of the Gaussian filters whose differences measure detail, as shares of the
# side: 1, 2 and 4 pixels at 224.
BLURS = (1 / 224, 2 / 224, 4 / 224)

# Window of the local contrast in which detail is measured, as a share of the side: twice as wide as
# for the networks.
DETAIL_WINDOW = 1 / 8

# Features of each cell, and for each feature the length of the code of its values outside the
# lungs. The finest detail is scanner noise and indicates sharpness: without it, a sharper scanner
# would look like healthier lungs. Inside the lungs the vessels matter, which have the two coarser
# scales.
CODE = {"finest detail": 1, "brightness": 6, "fine detail": 0, "coarse detail": 1}

# Signs of the errors in the lungs, so that positive errors mean brighter than expected, less fine
# detail, and less coarse detail. There is no error for the finest detail.
SIGNS = (1.0, -1.0, -1.0)


# The registered name distinguishes these weights from those of an earlier model, which measured
# detail in grey levels.
@keras.saving.register_keras_serializable("cxr_tf", name="HealthyContextOfLocalContrast")
class LungAppearanceModel(keras.Layer):
    """Map images [N, S, S, 1] in grey levels to errors float32 [N, 16, 16, 3].

    The errors state by how many standard deviations of healthy lungs a cell is brighter than
    expected, and has less fine and less coarse detail; 0 outside the lungs. The weights are set by
    `fit`, not by gradient descent. S is a multiple of 16.
    """

    def __init__(self, image_size: int, **layer: Any) -> None:
        super().__init__(**{**layer, "trainable": False})
        self.image_size = image_size
        cells, features, targets, code = GRID * GRID, len(CODE), len(SIGNS), sum(CODE.values())

        def weight(name: str, *shape: int) -> keras.Variable:
            return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

        self.outside = weight("outside", image_size, image_size, 1)
        self.region = weight("region", cells)
        self.centre = weight("centre", features, cells)
        self.encoder = weight("encoder", features * cells, code)
        self.decoder = weight("decoder", code, targets * cells)
        self.expected = weight("expected", targets, cells)
        self.spread = weight("spread", targets, cells)

    def get_config(self) -> dict:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "image_size": self.image_size}

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """See the class."""
        ops = keras.ops
        measured = self.cells(images)
        features, targets, cells = len(CODE), len(SIGNS), GRID * GRID
        code = ops.matmul(ops.reshape(measured - self.centre, (-1, features * cells)), self.encoder)
        expected = ops.reshape(ops.matmul(code, self.decoder), (-1, targets, cells)) + self.expected
        signs = np.array(SIGNS, np.float32)[:, None]
        errors = signs * (measured[:, features - targets :] - expected) / self.spread * self.region
        return ops.transpose(ops.reshape(errors, (-1, targets, GRID, GRID)), (0, 2, 3, 1))

    def cells(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Return the features in CODE of every cell, [N, 4, 256]; detail as its log energy.

        Brightness is in standard deviations of the pixels outside the lungs, so that a lesion does
        not change its scale. Detail is measured in local contrast, which depends less on exposure
        and tone than grey levels do.
        """
        weights = self.outside / (keras.ops.sum(self.outside) + 1e-6)
        mean = keras.ops.sum(images * weights, axis=(1, 2, 3), keepdims=True)
        variance = keras.ops.sum((images - mean) ** 2 * weights, axis=(1, 2, 3), keepdims=True)
        x = (images - mean) / (keras.ops.sqrt(variance) + 1.0)
        blurred = [self.detailed(images, x)]
        for share in BLURS:
            sigma = share * self.image_size
            blurred.append(gaussian(blurred[0], radius=int(np.ceil(3 * sigma)), sigma=sigma))
        finest, fine, coarse = (
            keras.ops.log(self._pooled(keras.ops.square(sharp - blunt)) + 1e-4)
            for sharp, blunt in itertools.pairwise(blurred)
        )
        return keras.ops.stack([finest, self._pooled(x), fine, coarse], axis=1)

    def detailed(
        self, images: keras.KerasTensor, standardised: keras.KerasTensor
    ) -> keras.KerasTensor:
        """Return the image in which detail is measured, [N, S, S, 1].

        `standardised` is unused here; a subclass in the benchmarks returns it instead.
        """
        return local_contrast(images, share=DETAIL_WINDOW)

    def _pooled(self, x: keras.KerasTensor) -> keras.KerasTensor:
        pooled = keras.ops.average_pool(x, self.image_size // GRID, padding="valid")
        return keras.ops.reshape(pooled, (-1, GRID * GRID))

    def fit(self, images: np.ndarray, lungs: np.ndarray, *, coded: int) -> None:
        """Fit all weights to healthy images.

        images: uint8 [C, N, S, S, 1], C copies of N images, such as perturbed ones; lungs: uint8
        [N, L, L, 1], 0 to 255, L a divisor of S; coded: number of copies, from the first, that the
        code is fitted to, because copies unlike any healthy image would use up its few numbers.
        The spread of a cell is that of the errors in five-fold cross-validation, with all copies of
        an image in one fold.
        """
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GroupKFold, cross_val_predict

        copies, count = images.shape[:2]
        groups = np.tile(np.arange(count), copies)
        share = lungs.mean(axis=0, dtype=np.float32) / 255
        share = share.repeat(self.image_size // len(share), 0).repeat(
            self.image_size // len(share), 1
        )
        self.outside.assign((share <= 0.3).astype(np.float32))
        coarse = share.reshape(GRID, self.image_size // GRID, GRID, -1).mean(axis=(1, 3)).ravel()
        region = coarse > 0.3
        measured = np.concatenate([np.asarray(self.cells(part)) for part in _parts(images)])
        centre = measured.mean(axis=0)

        encoder = np.zeros((*centre.shape, int(self.encoder.shape[1])), np.float32)
        start = 0
        for k, length in enumerate(CODE.values()):
            if length:
                # With few images, a code of full length would overfit.
                used = min(length, max(1, count // 10))
                pca = PCA(used, svd_solver="full").fit(measured[: coded * count, k, ~region])
                encoder[k, ~region, start : start + used] = pca.components_.T
            start += length
        encoder = encoder.reshape(-1, encoder.shape[-1])
        code = (measured - centre).reshape(len(measured), -1) @ encoder

        targets = measured[:, -len(SIGNS) :].reshape(len(measured), -1)
        ridge = Ridge(alpha=50.0)
        errors = targets - cross_val_predict(ridge, code, targets, groups=groups, cv=GroupKFold(5))
        ridge.fit(code, targets)
        spread = np.sqrt((errors**2).mean(axis=0)) + 1e-3
        self.region.assign(region.astype(np.float32))
        self.centre.assign(centre)
        self.encoder.assign(encoder)
        self.decoder.assign(ridge.coef_.T)
        self.expected.assign(ridge.intercept_.reshape(len(SIGNS), -1))
        self.spread.assign(spread.reshape(len(SIGNS), -1))


def _parts(images: np.ndarray, size: int = 64) -> Iterator[np.ndarray]:
    """Yield uint8 [C, N, S, S, 1] as float32 [B, S, S, 1], copy by copy, in small batches."""
    for copies in images:
        for start in range(0, len(copies), size):
            yield copies[start : start + size].astype(np.float32)
