"""Class activation maps and SmoothGrad from tf-keras-vis, for comparison with occlusion.

    maps = class_activation_maps(model, images, targets, "gradcam++")      # float32 [N, S, S]

- `gradcam++`: Chattopadhay et al., "Grad-CAM++" (WACV 2018): the last feature maps, weighted by
  positive gradients. One backward pass.
- `scorecam`: Wang et al., "Score-CAM" (CVPR Workshops 2020): the last feature maps, each weighted
  by the score of the image masked with it. Only the SCORECAM_MAPS maps that vary most are used, as
  in the faster variant of tf-keras-vis.
- `smoothgrad`: Smilkov et al., "SmoothGrad" (2017): gradients with respect to the image, averaged
  over SMOOTHGRAD_SAMPLES noisy copies.

The methods explain the logit of the target, before the softmax. Their maps have no unit, so each is
scaled to 0..1. Images are passed as the model takes them, before the standardisation.
"""

import contextlib
import io
import warnings
from typing import Any

import keras
import numpy as np

METHODS = ("gradcam++", "scorecam", "smoothgrad")

SCORECAM_MAPS = 64

SMOOTHGRAD_SAMPLES = 20


def class_activation_maps(
    model: keras.Model,
    images: np.ndarray,
    targets: np.ndarray,
    method: str,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Return maps float32 [N, S, S] in 0..1 of a flat float32 classifier.

    images: float32 [N, S, S, 3] in 0..255; targets: int [N]. Raises ValueError for an unknown
    method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    logits = keras.Model(model.input, model.get_layer("logits").output)
    layer = last_feature_maps(model)
    # SmoothGrad draws its noise from NumPy's global generator and accepts no other.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        # tf-keras-vis shows a progress bar for each image, passes the only input of the model as a
        # list, and imports from a namespace that SciPy has deprecated: users cannot fix that.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "The structure of `inputs`")
            raw_maps = [
                _map_of_one(logits, image[None], int(target), method, layer, batch_size)
                for image, target in zip(images, targets, strict=True)
            ]
    finally:
        np.random.set_state(state)  # noqa: NPY002
    maps = np.concatenate(raw_maps).astype(np.float32)
    maps -= maps.min((1, 2), keepdims=True)
    return maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-12)


def _map_of_one(
    logits: keras.Model, image: np.ndarray, target: int, method: str, layer: Any, batch_size: int
) -> np.ndarray:
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.scorecam import Scorecam
    from tf_keras_vis.utils.scores import CategoricalScore

    score = CategoricalScore([target])
    if method == "smoothgrad":
        return Saliency(logits)(
            score, image, smooth_samples=SMOOTHGRAD_SAMPLES, smooth_noise=0.1, normalize_map=False
        )
    at_layer = {"penultimate_layer": layer, "seek_penultimate_conv_layer": False}
    if method == "gradcam++":
        return GradcamPlusPlus(logits)(score, image, normalize_cam=False, **at_layer)
    return Scorecam(logits)(
        score,
        image,
        batch_size=batch_size,
        max_N=min(SCORECAM_MAPS, int(layer.output.shape[-1])),
        normalize_cam=False,
        **at_layer,
    )


def last_feature_maps(model: keras.Model) -> Any:
    """Return the last layer with a ReLU whose output is still spatial, [N, H, W, C].

    This is block5_conv3 of VGG16, conv5_block3_out of ResNet50 and conv5 of AlexNet: before the
    last pooling, which would reduce the resolution of the maps.
    """
    for layer in reversed(model.layers):
        relu = getattr(layer, "activation", None) is keras.activations.relu
        if relu and len(layer.output.shape) == 4:
            return layer
    raise ValueError("the model has no layer with a ReLU on feature maps")
