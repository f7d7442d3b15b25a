"""What healthy lungs should look like, told from everything around them.

    context = HealthyContext(image_size=224)
    context.fit(images[None], lungs)                # healthy images alone
    errors = context(images)                        # [N, 16, 16, 3], in standard deviations

A linear autoencoder that is not shown the lungs: it squeezes their surroundings (exposure, framing,
build, sharpness) into a few numbers, and from those predicts brightness and fine detail of the
lungs, cell by cell. An opacity is brighter than that, and drowns the vessels. Few numbers on
purpose: with more, or with a deep network in its place, the prediction for a chest unlike the
healthy ones follows the disease, and finds it less.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from cxr_tf.data.restoration.local_contrast import gaussian, local_contrast

# Cells a side: an opacity is larger than a sixteenth of the image.
GRID = 16

# Standard deviations of the blurs between which detail is measured, as shares of the side: 1, 2 and
# 4 pixels at 224.
BLURS = (1 / 224, 2 / 224, 4 / 224)

# Surroundings that detail is compared with (`local_contrast`), as a share of the side: twice as
# wide as those of the networks.
DETAIL_WINDOW = 1 / 8

# What is measured in each cell, and into how many numbers it is squeezed of the surroundings. The
# finest detail is noise of the scanner, and tells how sharp it is: without, a sharper one would
# look like healthier lungs. In the lungs the vessels count, which are of the two coarser scales.
CODE = {"finest detail": 1, "brightness": 6, "fine detail": 0, "coarse detail": 1}

# What is judged in the lungs: brighter than expected, and less detail. The finest is not.
SIGNS = (1.0, -1.0, -1.0)


# Under a name of its own: weights fitted to detail in grey levels, as before, would mean nothing.
@keras.saving.register_keras_serializable("cxr_tf", name="HealthyContextOfLocalContrast")
class LungAppearanceModel(keras.Layer):
    """Images [N, S, S, 1] in grey levels -> errors float32 [N, 16, 16, 3].

    By how many standard deviations of healthy lungs a cell is brighter than its surroundings let
    expect, and by how many it has less fine and less coarse detail; 0 outside the lungs. Its
    weights are fitted by `fit`, not by gradients. S is a multiple of 16.
    """

    def __init__(self, image_size: int, **layer: Any) -> None:
        super().__init__(**{**layer, "trainable": False})
        self.image_size = image_size
        cells, kinds, judged, code = GRID * GRID, len(CODE), len(SIGNS), sum(CODE.values())

        def weight(name: str, *shape: int) -> keras.Variable:
            return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

        self.outside = weight("outside", image_size, image_size, 1)
        self.region = weight("region", cells)
        self.centre = weight("centre", kinds, cells)
        self.encoder = weight("encoder", kinds * cells, code)
        self.decoder = weight("decoder", code, judged * cells)
        self.expected = weight("expected", judged, cells)
        self.spread = weight("spread", judged, cells)

    def get_config(self) -> dict:
        """What it takes to build it again."""
        return {**super().get_config(), "image_size": self.image_size}

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """See the class."""
        ops = keras.ops
        seen = self.cells(images)
        kinds, judged, cells = len(CODE), len(SIGNS), GRID * GRID
        code = ops.matmul(ops.reshape(seen - self.centre, (-1, kinds * cells)), self.encoder)
        told = ops.reshape(ops.matmul(code, self.decoder), (-1, judged, cells)) + self.expected
        signs = np.array(SIGNS, np.float32)[:, None]
        errors = signs * (seen[:, kinds - judged :] - told) / self.spread * self.region
        return ops.transpose(ops.reshape(errors, (-1, judged, GRID, GRID)), (0, 2, 3, 1))

    def cells(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Everything in CODE of every cell, [N, 4, 256]; detail as the logarithm of its energy.

        Brightness in standard deviations of what lies outside the lungs, so that a lesion does not
        change the scale it is measured on. Detail in the local contrast, which light and tone
        change less than grey levels.
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
        """What detail is measured in, [N, S, S, 1]; a variant takes the second."""
        return local_contrast(images, share=DETAIL_WINDOW)

    def _pooled(self, x: keras.KerasTensor) -> keras.KerasTensor:
        pooled = keras.ops.average_pool(x, self.image_size // GRID, padding="valid")
        return keras.ops.reshape(pooled, (-1, GRID * GRID))

    def fit(self, images: np.ndarray, lungs: np.ndarray, *, coded: int) -> None:
        """Fits everything to healthy images.

        images: uint8 [C, N, S, S, 1], C versions of each, such as other exposures of it; lungs:
        uint8 [N, L, L, 1], 0 to 255, L a divisor of S; coded: what the surroundings are squeezed
        into is found in so many of the versions, the first: versions far from any healthy image
        would use up its few numbers. The spread of a cell is that of the errors on images held out,
        five parts in turn, all versions of an image in one part.
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
        seen = np.concatenate([np.asarray(self.cells(part)) for part in _parts(images)])
        centre = seen.mean(axis=0)

        encoder = np.zeros((*centre.shape, int(self.encoder.shape[1])), np.float32)
        start = 0
        for k, length in enumerate(CODE.values()):
            if length:
                # With few images a code as long would know them by heart.
                used = min(length, max(1, count // 10))
                pca = PCA(used, svd_solver="full").fit(seen[: coded * count, k, ~region])
                encoder[k, ~region, start : start + used] = pca.components_.T
            start += length
        encoder = encoder.reshape(-1, encoder.shape[-1])
        code = (seen - centre).reshape(len(seen), -1) @ encoder

        judged = len(SIGNS)
        targets = seen[:, -judged:].reshape(len(seen), -1)
        ridge = Ridge(alpha=50.0)
        held_out = targets - cross_val_predict(
            ridge, code, targets, groups=groups, cv=GroupKFold(5)
        )
        ridge.fit(code, targets)
        spread = np.sqrt((held_out**2).mean(axis=0)) + 1e-3
        self.region.assign(region.astype(np.float32))
        self.centre.assign(centre)
        self.encoder.assign(encoder)
        self.decoder.assign(ridge.coef_.T)
        self.expected.assign(ridge.intercept_.reshape(judged, -1))
        self.spread.assign(spread.reshape(judged, -1))


def _parts(images: np.ndarray, size: int = 64) -> Iterator[np.ndarray]:
    """uint8 [C, N, S, S, 1] -> float32 [B, S, S, 1], version by version, few at a time."""
    for version in images:
        for start in range(0, len(version), size):
            yield version[start : start + size].astype(np.float32)
