"""Train variants of the autoencoder on the same data, and score parts of the default.

    material = make_material(settings, healthy, val)
    for name, rows in variants(material, feature_maps(settings)).items():
        for row, scores in rows(): ...

Every row contains an anomaly score (`alone`), its combination with the lung appearance model as in
the default (`joined`), or both. All networks are trained on the healthy training images, with the
same number of steps, except one network that is trained longer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.autoencoder.features import of_features
from benchmarks.autoencoder.material import (
    DEFAULT,
    NEXT_SEED,
    Material,
    Row,
    batches,
    make_material,
    trained,
)
from benchmarks.autoencoder.residuals import (
    GreyContext,
    fitted_together,
    highest_tenth,
    other_residuals,
    shifts,
)
from cxr_tf.anomaly import fitting, perturbed_copies, scoring
from cxr_tf.config import LARGEST_SEED
from cxr_tf.data import decoding
from cxr_tf.data.acquisition.shifts import simulate_scanner
from cxr_tf.data.restoration import opacities
from cxr_tf.data.restoration.local_contrast import WINDOW, local_contrast
from cxr_tf.data.sources import phantom_anatomy
from cxr_tf.errors import UserError

# Number of cells along a side of the image, for masked inpainting.
CELLS = 8


def variants(
    material: Material, features: Callable[[np.ndarray, int], np.ndarray] | None
) -> dict[str, Callable[[], Iterator[tuple[str, Row]]]]:
    """Return {name: function that trains a variant and yields its rows}."""
    seen, lungs = material.seen, material.lungs
    next_seed = (material.settings.seed + 1) % (LARGEST_SEED + 1)
    average = np.round(lungs.mean(axis=0, keepdims=True)).astype(np.uint8)

    def retrained(name: str, *args: Any, **changes: Any) -> Callable:
        def rows() -> Iterator[tuple[str, Row]]:
            network, _, seconds = trained(material, *args, **changes)
            yield name, material.row(network, seconds)

        return rows

    def painted(**how: float) -> opacities.Pair:
        return lambda healthy, lungs, seed: opacities.contrast_pair(
            healthy, opacities.paint(healthy, lungs, seed, **how)
        )

    functions: dict[str, Callable] = {
        DEFAULT: lambda: of_default(material),
        "seed": retrained(NEXT_SEED, seen, lungs, seed=next_seed),
        "long": retrained("trained four times as long", seen, lungs, epochs=4 * material.epochs),
        "fixed-lungs": retrained(
            "mean lung position", seen, np.repeat(average, len(lungs), axis=0)
        ),
        "phantoms": lambda: of_phantom_lesions(material),
        "hard": retrained(
            "opacities with edges a quarter as soft", seen, lungs, pair=painted(softness=0.25)
        ),
        "soft": retrained(
            "opacities with edges twice as soft", seen, lungs, pair=painted(softness=2)
        ),
        "small": retrained("opacities half as wide", seen, lungs, pair=painted(extent=0.5)),
        "large": retrained("opacities twice as wide", seen, lungs, pair=painted(extent=2)),
        "scanners": retrained(
            "trained on images of other scanners", seen, lungs, pair=rescanned_pair
        ),
        "covered": lambda: of_covered(material),
        "grey-levels": lambda: of_grey_levels(material),
        "narrow": lambda: of_surroundings(0.5, material),
        "wide": lambda: of_surroundings(2.0, material),
        "larger": lambda: of_larger_images(material),
    }
    if features is not None:
        functions["features"] = lambda: of_features(material, features)
    return functions


def of_default(material: Material) -> Iterator[tuple[str, Row]]:
    """Train the default network; yield the name and row of its score and of alternative scores.

    The alternative scores need no further training.
    """
    network, last, seconds = trained(material, material.seen, material.lungs)
    default = material.row(network, seconds)
    yield DEFAULT, default

    averaged = network.get_weights()
    network.set_weights(last)
    yield "weights of the last step, not averaged", material.row(network)
    network.set_weights(averaged)

    yield "appearance model, no network", Row(material.context_score, None)
    grey = dataclasses.replace(
        material, context=fitting.fit_appearance_model(material.healthy.images, GreyContext)
    )
    joined = grey.score(network, "combined")
    yield "appearance model, detail in grey levels", Row(grey.context_score, joined)
    yield from other_residuals(network, material)

    healthy = fitting.healthy_images(material.val)
    model = scoring.scoring_model(network, material.context, healthy, "combined")
    images = material.val.images
    ask = perturbed_copies.predict_fn(model, ("score",))
    assert default.joined is not None
    mirrored = ask(images[:, :, ::-1])["score"]
    yield "averaged with the mirrored image", Row(None, (default.joined + mirrored) / 2)
    views = [default.joined, *(ask(moved)["score"] for moved in shifts(images))]
    yield "averaged with four shifted images", Row(None, np.mean(views, axis=0))
    yield "errors joined by logistic regression", Row(None, fitted_together(model, material))


def rescanned_pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
    """Simulate another scanner, then paint opacities as the default does."""
    rescanned = simulate_scanner(healthy, seed)
    return opacities.restoration_pair(rescanned, lungs, seed)


def of_phantom_lesions(material: Material) -> Iterator[tuple[str, Row]]:
    """Train on opacities of the phantom generator that are painted on the training images.

    If the number of epochs is even, each image is painted twice and the epochs are halved, so that
    the number of steps is the same.
    """
    epochs = material.epochs
    copies = 2 - epochs % 2
    painted = [phantom_lesions(material, copy) for copy in range(copies)]

    def pair(healthy: tf.Tensor, raised: tf.Tensor, seed: tf.Tensor) -> tuple:
        return opacities.contrast_pair(healthy, tf.minimum(healthy + 255 * raised, 255.0))

    images = np.concatenate([material.seen] * copies)
    network, _, seconds = trained(
        material, images, np.concatenate(painted), epochs=epochs // copies, pair=pair
    )
    yield "opacities of the phantom generator", material.row(network, seconds)


def phantom_lesions(material: Material, copy: int) -> np.ndarray:
    """Return the grey levels added to each image, uint8 [N, T, T, 1]; about a fifth get none."""
    raised = np.zeros_like(material.seen)
    for i, (image, lungs) in enumerate(zip(material.seen, material.lungs, strict=True)):
        rng = np.random.default_rng((material.settings.seed, copy, i))
        paint = (
            phantom_anatomy.paint_lobar
            if rng.random() < 0.55
            else phantom_anatomy.paint_interstitial
        )
        if rng.random() < opacities.PAINTED_SHARE:
            gray = image[..., 0].astype(np.float32) / 255
            painted, _ = paint(gray, lungs[..., 0] / 255, rng, rng.uniform(0.25, 1.0))
            raised[i, ..., 0] = np.round(255 * np.maximum(painted - gray, 0))
    return raised


def of_covered(material: Material) -> Iterator[tuple[str, Row]]:
    """Train a network by masked inpainting: it predicts a quarter of the cells from the others."""

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        batch, size = tf.shape(healthy)[0], healthy.shape[1]
        streams = tf.random.experimental.stateless_split(seed, 2)
        drawn = tf.random.stateless_uniform([batch, CELLS, CELLS, 1], streams[0]) < 0.25
        cover = tf.image.resize(tf.cast(drawn, tf.float32), [size, size], method="nearest")
        offset = tf.random.stateless_uniform([2], streams[1], 0, size, tf.int32)
        cover = tf.roll(cover, offset, axis=[1, 2])
        seen = local_contrast(healthy)
        inputs, targets = opacities.as_pair(seen, seen * (1 - cover))
        return inputs, {**targets, "lesion_mask": cover}

    network, _, seconds = trained(material, material.seen, material.lungs, pair=pair)
    size = material.shown.shape[1]
    rows, columns = np.mgrid[:size, :size] * CELLS // size
    amounts = []
    for part in batches(material.shown):
        x = local_contrast(tf.constant(part))
        error = np.zeros_like(part)
        for turn in range(4):
            cover = ((rows % 2) * 2 + columns % 2 == turn).astype(np.float32)[None, ..., None]
            removed = network(x * (1 - cover), training=False)["residual"]
            error += (tf.nn.relu(x + removed) * cover).numpy()
        amounts.append(highest_tenth(error))
    yield "masked inpainting", material.measured(np.concatenate(amounts), seconds)


def of_grey_levels(material: Material) -> Iterator[tuple[str, Row]]:
    """Train on images that are standardised as a whole instead of by local contrast."""

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        painted = opacities.paint(healthy, lungs, seed)
        spread = tf.math.reduce_std(painted, axis=[1, 2, 3], keepdims=True) + 1.0
        _, targets = opacities.as_pair(healthy / spread, painted / spread)
        return opacities.standardised(painted), targets

    yield "grey levels instead of local contrast", seen_as(opacities.standardised, pair, material)


def of_surroundings(times: float, material: Material) -> Iterator[tuple[str, Row]]:
    """Train on local contrast with a window `times` times as wide as that of the default."""
    see = functools.partial(local_contrast, share=times * WINDOW)

    def pair(healthy: tf.Tensor, lungs: tf.Tensor, seed: tf.Tensor) -> tuple:
        return opacities.as_pair(see(healthy), see(opacities.paint(healthy, lungs, seed)))

    yield f"local contrast, surroundings {times:g} times as wide", seen_as(see, pair, material)


def seen_as(see: Callable[[tf.Tensor], tf.Tensor], pair: opacities.Pair, material: Material) -> Row:
    """Train on pairs with the preprocessing `see`; return the row of the network's residual."""
    network, _, seconds = trained(material, material.seen, material.lungs, pair=pair)
    amounts = []
    for part in batches(material.shown):
        removed = network(see(tf.constant(part)), training=False)["residual"]
        amounts.append(highest_tenth(tf.nn.relu(removed).numpy()))
    return material.measured(np.concatenate(amounts), seconds)


def of_larger_images(material: Material) -> Iterator[tuple[str, Row]]:
    """Train on images whose side is 10/7 as long: 320 pixels instead of 224."""
    size = round(material.settings.image_size * 10 / 7 / 32) * 32
    parts = []
    for part in (material.healthy, material.val):
        images, unreadable = decoding.load_images(part.catalog.paths, size)
        for row, reason in unreadable.items():  # although all were readable at the start
            raise UserError(f"{part.catalog.paths[row]}: {reason}")
        parts.append(dataclasses.replace(part, images=images))
    larger = make_material(material.settings, *parts)
    network, _, seconds = trained(larger, larger.seen, larger.lungs)
    name = f"images of {size} pixels, halved for the network to {size // 2}"
    yield name, larger.row(network, seconds)
