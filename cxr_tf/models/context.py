"""What healthy lungs should look like, told from everything around them.

    context = HealthyContext(image_size=112)
    context.fit(images[None], lungs)                # healthy images alone
    brighter, duller = context(standardised)        # [N, 16, 16] each, in standard deviations

A linear autoencoder that is not shown the lungs: it squeezes their surroundings (exposure, framing,
build, sharpness) into a few numbers, and from those predicts brightness and fine detail of the
lungs, cell by cell. An opacity is brighter than that, and drowns the vessels. Few numbers on
purpose: with more, or with a deep network in its place, the prediction for a chest unlike the
healthy ones follows the disease, and finds it less.
"""

from typing import Any

import keras
import numpy as np

# Cells a side: an opacity is larger than a sixteenth of the image.
GRID = 16

# Numbers that the surroundings are squeezed into: their brightness, and their fine detail. Without
# the second, a sharper scanner would look like healthier lungs.
BRIGHTNESS_CODE, DETAIL_CODE = 10, 1


@keras.saving.register_keras_serializable("cxr_tf")
class HealthyContext(keras.Layer):
    """Images [N, S, S, 1], of any scale and offset, -> (brighter, duller), float32 [N, 16, 16].

    By how many standard deviations of healthy lungs a cell is brighter than its surroundings let
    expect, and by how many it has less fine detail; 0 outside the lungs. Its weights are fitted by
    `fit`, not by gradients.
    """

    def __init__(self, image_size: int, **layer: Any) -> None:
        super().__init__(**{**layer, "trainable": False})
        self.image_size = image_size
        cells, code = GRID * GRID, BRIGHTNESS_CODE + DETAIL_CODE

        def weight(name: str, *shape: int) -> keras.Variable:
            return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

        self.outside = weight("outside", image_size, image_size, 1)
        self.region = weight("region", cells)
        self.centre = weight("centre", 2, cells)
        self.encoder = weight("encoder", 2, cells, code)
        self.decoder = weight("decoder", 2, code, cells)
        self.expected = weight("expected", 2, cells)
        self.spread = weight("spread", 2, cells)

    def get_config(self) -> dict:
        """What it takes to build it again."""
        return {**super().get_config(), "image_size": self.image_size}

    def call(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """See the class."""
        seen = self.cells(images)
        code = sum(keras.ops.matmul(seen[i] - self.centre[i], self.encoder[i]) for i in range(2))
        errors = [
            (seen[i] - keras.ops.matmul(code, self.decoder[i]) - self.expected[i])
            / self.spread[i]
            * self.region
            for i in range(2)
        ]
        brighter, duller = (keras.ops.reshape(e, (-1, GRID, GRID)) for e in (errors[0], -errors[1]))
        return brighter, duller

    def cells(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Brightness and log fine detail of every cell, [N, 256] each.

        In standard deviations of what lies outside the lungs, so that a lesion does not change the
        scale it is measured on.
        """
        weights = self.outside / (keras.ops.sum(self.outside) + 1e-6)
        mean = keras.ops.sum(images * weights, axis=(1, 2, 3), keepdims=True)
        variance = keras.ops.sum((images - mean) ** 2 * weights, axis=(1, 2, 3), keepdims=True)
        x = (images - mean) / (keras.ops.sqrt(variance) + 0.01)
        detail = keras.ops.square(x - gaussian(x, radius=6, sigma=2.0))
        return self._pooled(x), keras.ops.log(self._pooled(detail) + 1e-3)

    def _pooled(self, x: keras.KerasTensor) -> keras.KerasTensor:
        pooled = keras.ops.average_pool(x, self.image_size // GRID, padding="valid")
        return keras.ops.reshape(pooled, (-1, GRID * GRID))

    def fit(self, images: np.ndarray, lungs: np.ndarray) -> None:
        """Fits everything to healthy images.

        images: float32 [C, N, S, S, 1], C versions of each, such as other exposures of it; lungs:
        uint8 [N, S, S, 1], 0 to 255. The spread of a cell is that of the errors on images held out,
        five parts in turn, all versions of an image in one part.
        """
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GroupKFold, cross_val_predict

        copies, count = images.shape[:2]
        images = images.reshape(copies * count, *images.shape[2:])
        groups = np.tile(np.arange(count), copies)
        share = lungs.astype(np.float32).mean(axis=0) / 255
        self.outside.assign((share <= 0.3).astype(np.float32))
        coarse = share.reshape(GRID, self.image_size // GRID, GRID, -1).mean(axis=(1, 3)).ravel()
        region = coarse > 0.3
        seen = [
            np.concatenate(
                [np.asarray(self.cells(images[i : i + 64])[k]) for i in range(0, len(images), 64)]
            )
            for k in range(2)
        ]
        # With few images a code as long would know them by heart.
        lengths = [min(n, max(1, count // 10)) for n in (BRIGHTNESS_CODE, DETAIL_CODE)]
        encoder = np.zeros(self.encoder.shape, np.float32)
        centre = np.stack([s.mean(axis=0) for s in seen])
        start = 0
        for k, (surroundings, length) in enumerate(zip(seen, lengths, strict=True)):
            pca = PCA(length, svd_solver="full").fit(surroundings[:, ~region])
            encoder[k, ~region, start : start + length] = pca.components_.T
            start += (BRIGHTNESS_CODE, DETAIL_CODE)[k]
        code = sum((seen[k] - centre[k]) @ encoder[k] for k in range(2))
        parts = GroupKFold(5)
        decoder, expected, spread = [], [], []
        for target in seen:
            ridge = Ridge(alpha=50.0).fit(code, target)
            held_out = target - cross_val_predict(
                Ridge(alpha=50.0), code, target, groups=groups, cv=parts
            )
            decoder.append(ridge.coef_.T)
            expected.append(ridge.intercept_)
            spread.append(np.sqrt((held_out**2).mean(axis=0)) + 1e-3)
        self.region.assign(region.astype(np.float32))
        self.centre.assign(centre)
        self.encoder.assign(encoder)
        self.decoder.assign(np.stack(decoder))
        self.expected.assign(np.stack(expected))
        self.spread.assign(np.stack(spread))


def gaussian(x: keras.KerasTensor, *, radius: int, sigma: float) -> keras.KerasTensor:
    """Gaussian blur of [N, H, W, 1], sigma in pixels; borders are mirrored."""
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    weights = keras.ops.convert_to_tensor((weights / weights.sum()).astype(np.float32))
    x = keras.ops.pad(x, [[0, 0], [radius, radius], [radius, radius], [0, 0]], mode="symmetric")
    x = keras.ops.conv(x, keras.ops.reshape(weights, (-1, 1, 1, 1)), padding="valid")
    return keras.ops.conv(x, keras.ops.reshape(weights, (1, -1, 1, 1)), padding="valid")
