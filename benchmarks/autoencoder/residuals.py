"""Alternative error measures and scores of the default network."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from benchmarks.autoencoder.material import Material, Row, batches
from cxr_tf.anomaly import perturbed_copies
from cxr_tf.data import augmentation
from cxr_tf.data.restoration.local_contrast import local_contrast
from cxr_tf.models import autoencoder
from cxr_tf.models.lung_appearance import LungAppearanceModel


class GreyContext(LungAppearanceModel):
    """A lung appearance model that measures detail in grey levels."""

    def detailed(
        self, images: keras.KerasTensor, standardised: keras.KerasTensor
    ) -> keras.KerasTensor:
        """Return the standardised grey levels unchanged."""
        return standardised


def other_residuals(network: keras.Model, material: Material) -> Iterator[tuple[str, Row]]:
    """Yield the rows of alternative measures of the default network's residual."""
    maps, marks, similar = [], [], []
    for part in batches(material.shown):
        x = local_contrast(tf.constant(part))
        outputs = network(x, training=False)
        maps.append(tf.nn.relu(outputs["residual"]).numpy())
        marks.append(tf.sigmoid(outputs["lesion_mask"]).numpy())
        restored = x - outputs["residual"]
        similar.append((1 - autoencoder.structural_similarity(x, restored)).numpy() / 2)
    removed = np.concatenate(maps)
    coarser = [removed] + [
        tf.nn.avg_pool2d(removed, times, times, "VALID").numpy() for times in (2, 4, 8)
    ]
    yield "lesion mask of the network", material.measured(highest_tenth(np.concatenate(marks)))
    dissimilar = np.concatenate(similar).mean(axis=(1, 2, 3))
    yield "SSIM of the reconstruction", material.measured(np.maximum(dissimilar, 0))
    squared = material.measured(highest_tenth(removed**2), least=autoencoder.LEAST_RESIDUAL**2)
    yield "squared residual", squared
    yield (
        "residual at four scales",
        material.measured(np.mean([highest_tenth(x) for x in coarser], axis=0)),
    )
    yield (
        "residual in standard deviations of each pixel",
        material.measured(highest_tenth(by_pixel(removed, material))),
    )


def highest_tenth(maps: np.ndarray) -> np.ndarray:
    """Return the mean of the highest tenth of the pixels of maps [N, T, T, 1], float32 [N]."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    return flat[:, -int(autoencoder.SCORED_SHARE * flat.shape[1]) :].mean(axis=1)


def by_pixel(maps: np.ndarray, material: Material) -> np.ndarray:
    """Standardise each pixel of maps by healthy validation images; negative values become 0.

    maps: float32 [M, T, T, 1], one for each of `material.shown`. The mean and standard deviation of
    each pixel are cross-fitted: patients with healthy images are divided into halves, and each half
    is standardised by the other; all other patients are standardised by the second half.
    """
    patients, sick = np.array(material.val.catalog.patients), material.sick
    known = np.unique(patients[~sick])
    first = np.isin(patients, known[::2]) | (sick & ~np.isin(patients, known))
    copies = (len(maps) - len(sick)) // int((~sick).sum())
    in_first = np.concatenate([first, *[first[~sick]] * copies])
    out = np.empty_like(maps)
    for own, other in ((in_first, ~first & ~sick), (~in_first, first & ~sick)):
        healthy = maps[: len(sick)][other]
        spread = healthy.std(axis=0) + 0.1 * healthy.std()
        out[own] = np.maximum((maps[own] - healthy.mean(axis=0)) / spread, 0)
    return out


def shifts(images: np.ndarray, share: float = 0.03) -> Iterator[np.ndarray]:
    """Yield the images shifted by a share of their side towards each corner, filled with black."""
    count, size = images.shape[:2]
    zeros, ones = tf.zeros(count), tf.ones(count)
    for down in (-share, share):
        for across in (-share, share):
            yield augmentation.affine(
                tf.constant(images, tf.float32),
                angle=zeros,
                scale_x=ones,
                scale_y=ones,
                shift_x=across * size * ones,
                shift_y=down * size * ones,
            ).numpy()


def fitted_together(model: keras.Model, material: Material) -> np.ndarray:
    """Combine the four errors with a logistic regression that is cross-fitted by patient."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    errors = {"score": model.get_layer("healthy_scale").output}
    deviations = perturbed_copies.predict_fn(keras.Model(model.input, errors), ("score",))(
        material.val.images
    )
    return cross_val_predict(
        LogisticRegression(),
        deviations["score"],
        material.sick,
        groups=material.val.catalog.patients,
        cv=StratifiedGroupKFold(5),
        method="decision_function",
    )
