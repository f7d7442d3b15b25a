"""ResNet50, VGG16 and AlexNet in one table: graph, weights, preprocessing, blocks.

    features = BACKBONES["vgg16"].build(images)                 # [N, S, S, 3] in 0..255 -> [N, D]
    load_weights(model, "vgg16", "vgg16_notop.weights.h5")      # or "imagenet", or "none"

The builders add their layers to the caller's graph, because class activation maps fail on a nested
backbone. In a flat graph `training=False` cannot be passed to BatchNorm, so frozen layers are set
to `trainable=False` (`freeze`), which in Keras also freezes their statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.models.alexnet import alexnet_features

SMALLEST_SIZE = 64

# Mean and standard deviation of every radiograph before the backbone's preprocessing, in grey
# levels: those of ImageNet photographs, which pretrained filters expect.
GRAY_MEAN, GRAY_SPREAD = 118.0, 58.0


@dataclass(frozen=True)
class Backbone:
    """One backbone: how it is built, and how it is trained.

    `features` maps standardised images (mean GRAY_MEAN) to an embedding [N, D]. `blocks` are the
    prefixes of layer names, block by block from the input; fine-tuning freezes whole blocks.
    `tuned_blocks` is the number of blocks, counted from the last, that are fine-tuned by default
    from pretrained weights; `scratch_rate` is the peak learning rate without pretrained weights.
    `styled` are the layers in the first blocks after which styles are mixed (`mixstyle`) in
    training from pretrained weights. `bfloat16_from` is the smallest side of an image, in pixels,
    for which a training step is faster in bfloat16 than in float32, on hardware that supports both.
    """

    features: Callable[[keras.KerasTensor], keras.KerasTensor]
    blocks: tuple[str, ...]
    tuned_blocks: int
    scratch_rate: float
    styled: tuple[str, ...]
    bfloat16_from: int
    imagenet: Callable[[], keras.Model] | None
    where_to_get: str

    def gains_in_bfloat16(self, image_size: int, pretrained: bool) -> bool:
        """Return whether training on images of this side, in pixels, benefits from bfloat16.

        Training from scratch does not: its first epochs make less progress in bfloat16.
        """
        return pretrained and image_size >= self.bfloat16_from

    def build(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Map images [N, S, S, 3] in 0..255 to the embedding [N, D], in the caller's graph."""
        if min(images.shape[1:3]) < SMALLEST_SIZE:
            raise UserError(
                f"--image-size must be at least {SMALLEST_SIZE}, not {min(images.shape[1:3])}"
            )
        return self.features(standardise(images))


def standardise(images: keras.KerasTensor) -> keras.KerasTensor:
    """Scale each image [N, S, S, C] to mean GRAY_MEAN and standard deviation GRAY_SPREAD.

    Exposure differs between hospitals, and in the Kermany data between classes; the network must
    not depend on it. A blank image stays blank.
    """
    mean = keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
    spread = keras.ops.std(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) / (spread + 1.0) * GRAY_SPREAD + GRAY_MEAN


def _average(x: keras.KerasTensor) -> keras.KerasTensor:
    # In float32: averaging hundreds of bfloat16 numbers loses digits that distinguish classes.
    return keras.layers.GlobalAveragePooling2D(name="average", dtype="float32")(x)


def _vgg16(x: keras.KerasTensor) -> keras.KerasTensor:
    x = keras.applications.vgg16.preprocess_input(x)
    model = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x)
    return _average(model.output)


def _resnet50(x: keras.KerasTensor) -> keras.KerasTensor:
    x = keras.applications.resnet50.preprocess_input(x)
    model = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x)
    return _average(model.output)


def _alexnet(x: keras.KerasTensor) -> keras.KerasTensor:
    # torchvision's normalisation, which its published weights expect.
    mean = np.array([0.485, 0.456, 0.406], np.float32) * 255
    spread = np.array([0.229, 0.224, 0.225], np.float32) * 255
    x = keras.layers.Normalization(mean=mean, variance=spread**2, name="imagenet_scale")(x)
    return alexnet_features(x)


BACKBONES: dict[str, Backbone] = {
    "resnet50": Backbone(
        features=_resnet50,
        blocks=("conv1", "conv2", "conv3", "conv4", "conv5"),
        tuned_blocks=5,
        scratch_rate=1e-3,
        styled=("conv2_block3_out", "conv3_block4_out"),
        bfloat16_from=96,  # for smaller images, memory access limits its narrow layers
        imagenet=lambda: keras.applications.ResNet50(include_top=False, weights="imagenet"),
        where_to_get="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 of Keras Applications",
    ),
    "vgg16": Backbone(
        features=_vgg16,
        blocks=("block1", "block2", "block3", "block4", "block5"),
        # The first two blocks detect edges, which transfer, and take half of a training step.
        tuned_blocks=3,
        # Without normalisation layers, VGG16 from scratch diverges at higher rates.
        scratch_rate=2e-4,
        styled=("block1_pool", "block2_pool"),
        bfloat16_from=SMALLEST_SIZE,
        imagenet=lambda: keras.applications.VGG16(include_top=False, weights="imagenet"),
        where_to_get="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 of Keras Applications",
    ),
    "alexnet": Backbone(
        features=_alexnet,
        blocks=("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"),
        tuned_blocks=7,
        scratch_rate=2e-4,
        styled=("conv1_pool", "conv2_pool"),
        bfloat16_from=SMALLEST_SIZE,
        imagenet=None,
        where_to_get="torchvision's weights, converted by scripts/convert_alexnet_weights.py",
    ),
}


def backbone(name: str) -> Backbone:
    """Return the entry of the table; raise UserError with the known names for an unknown one."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def backbone_layers(model: keras.Model, name: str) -> list[keras.layers.Layer]:
    """Return the layers of the backbone in a flat model that have weights, in order."""
    blocks = backbone(name).blocks
    return [x for x in model.layers if x.weights and x.name.startswith(blocks)]


def check_blocks(name: str, count: int) -> None:
    """Raise UserError for a negative number of blocks, or more than the backbone has."""
    most = len(backbone(name).blocks)
    if not 0 <= count <= most:
        raise UserError(f"--trainable-blocks for {name} must be from 0 to {most}, not {count}")


def freeze(model: keras.Model, name: str, *, trainable_blocks: int, batch_norm: bool) -> None:
    """Freeze all but the last `trainable_blocks` blocks, and all BatchNorm unless `batch_norm`.

    Pretrained BatchNorm stays frozen in trainable blocks too: its statistics, from a million
    images, are better than those of a few thousand radiographs in small batches.
    """
    blocks = backbone(name).blocks
    check_blocks(name, trainable_blocks)
    trained = blocks[len(blocks) - trainable_blocks :]
    for layer in backbone_layers(model, name):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = bool(trained) and layer.name.startswith(trained)
        if is_norm and not batch_norm:
            layer.trainable = False
