"""ResNet50, VGG16 and AlexNet behind one table: build, weights, preprocessing, where to cut.

    features = BACKBONES["vgg16"].build(images)                 # [N, S, S, 3] in 0..255 -> [N, D]
    load_weights(model, "vgg16", "vgg16_notop.weights.h5")      # or "imagenet", or "none"

The builders lay their layers flat into the caller's graph: class activation maps fail on a backbone
that is nested as one layer. In a flat graph nobody passes `training=False` to BatchNorm, so layers
that must not move are set `trainable=False` (`freeze`), which in Keras also stops their statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.models.alexnet import alexnet_features

SMALLEST_SIZE = 64

# Mean and spread that every radiograph is brought to before the backbone's own preprocessing, in
# grey levels: those of ImageNet photographs, which pretrained filters expect.
GRAY_MEAN, GRAY_SPREAD = 118.0, 58.0


@dataclass(frozen=True)
class Backbone:
    """How to build one backbone, and where its blocks begin.

    `features` maps standardised images (mean GRAY_MEAN) to an embedding [N, D]. `blocks` are the
    prefixes of layer names, block by block from the input, by which fine-tuning freezes.
    `tuned_blocks` is how many of them, from the last, move by default from pretrained weights;
    `scratch_rate` is the peak learning rate without pretrained weights. `styled` are the layers, of
    the first blocks, behind which styles are mixed (`styles`) in training from pretrained weights.
    `bfloat16_from` is the side of an image, in pixels, from which a training step is faster in
    bfloat16 than in float32, on hardware that multiplies both.
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
        """Whether images of this side, in pixels, train faster in bfloat16, and as well.

        From scratch they do not: the first epochs, on which all others rest, learn less in it.
        """
        return pretrained and image_size >= self.bfloat16_from

    def build(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Images [N, S, S, 3] in 0..255 -> embedding [N, D], in the caller's graph."""
        if min(images.shape[1:3]) < SMALLEST_SIZE:
            raise UserError(
                f"--image-size must be at least {SMALLEST_SIZE}, not {min(images.shape[1:3])}"
            )
        return self.features(standardise(images))


def standardise(images: keras.KerasTensor) -> keras.KerasTensor:
    """Brings each image [N, S, S, C] to mean GRAY_MEAN and standard deviation GRAY_SPREAD.

    Exposure differs between hospitals, and in the Kermany data between classes; the network should
    not see it. A blank image stays blank.
    """
    mean = keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
    spread = keras.ops.std(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) / (spread + 1.0) * GRAY_SPREAD + GRAY_MEAN


def _average(x: keras.KerasTensor) -> keras.KerasTensor:
    # In float32: averaging hundreds of bfloat16 numbers loses the digits that tell classes apart.
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
        bfloat16_from=96,  # its narrow layers wait for memory before they wait for arithmetic
        imagenet=lambda: keras.applications.ResNet50(include_top=False, weights="imagenet"),
        where_to_get="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 of Keras Applications",
    ),
    "vgg16": Backbone(
        features=_vgg16,
        blocks=("block1", "block2", "block3", "block4", "block5"),
        # The first two see edges, which are the same everywhere, and cost half of a training step.
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
    """The table's entry; ValueError that lists the known ones for another name."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def backbone_layers(model: keras.Model, name: str) -> list[keras.layers.Layer]:
    """Layers of the backbone within a flat model that hold weights, from input to output."""
    blocks = backbone(name).blocks
    return [x for x in model.layers if x.weights and x.name.startswith(blocks)]


def check_blocks(name: str, count: int) -> None:
    """Raises UserError for more blocks than a backbone has, or fewer than none."""
    most = len(backbone(name).blocks)
    if not 0 <= count <= most:
        raise UserError(f"--trainable-blocks for {name} goes from 0 to {most}, not {count}")


def freeze(model: keras.Model, name: str, *, trainable_blocks: int, batch_norm: bool) -> None:
    """Leaves only the last `trainable_blocks` blocks trainable; BatchNorm as well if `batch_norm`.

    Pretrained BatchNorm stays frozen even in trainable blocks: its statistics, from a million
    images, are better than what a few thousand radiographs in small batches give.
    """
    blocks = backbone(name).blocks
    check_blocks(name, trainable_blocks)
    moving = blocks[len(blocks) - trainable_blocks :]
    for layer in backbone_layers(model, name):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = bool(moving) and layer.name.startswith(moving)
        if is_norm and not batch_norm:
            layer.trainable = False
