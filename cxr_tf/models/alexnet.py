"""AlexNet in Keras, layer for layer the network of torchvision.

The network of Krizhevsky, "One weird trick for parallelizing convolutional neural networks"
(arXiv:1404.5997), as torchvision builds it: 64-192-384-256-256 filters, 6x6 adaptive average
pooling, 4096-4096 units. torchvision's published weights can be loaded after
`scripts/convert_alexnet_weights.py` has converted them to a Keras file.
"""

import keras
import numpy as np

# name, filters, kernel, stride, padding on each side, followed by max pooling
CONVOLUTIONS = (
    ("conv1", 64, 11, 4, 2, True),
    ("conv2", 192, 5, 1, 2, True),
    ("conv3", 384, 3, 1, 1, False),
    ("conv4", 256, 3, 1, 1, False),
    ("conv5", 256, 3, 1, 1, True),
)

POOLED = 6


def alexnet_features(x: keras.KerasTensor) -> keras.KerasTensor:
    """Map normalised images [N, H, W, 3], H and W at least 64, to the output of `fc7` [N, 4096]."""
    # He initialisation: with Glorot's, deep ReLU stacks lose the signal.
    for name, filters, kernel, stride, padding, pooled in CONVOLUTIONS:
        # Padding as a layer: with a stride, Keras's "same" pads unevenly, unlike PyTorch.
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
        x = keras.layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            activation="relu",
            kernel_initializer="he_normal",
            name=name,
        )(x)
        if pooled:
            x = keras.layers.MaxPooling2D(3, strides=2, name=f"{name}_pool")(x)
    x = _adaptive_average_pooling(x, POOLED)
    x = keras.layers.Flatten(name="flatten")(x)
    for name in ("fc6", "fc7"):
        x = keras.layers.Dropout(0.5, name=f"{name}_dropout")(x)
        x = keras.layers.Dense(4096, activation="relu", kernel_initializer="he_normal", name=name)(
            x
        )
    return x


def _adaptive_average_pooling(x: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Average-pool an input of any size to size x size, with PyTorch's bins, which may overlap.

    Bin i of n covers floor(i * h / n) to ceil((i + 1) * h / n). Computed as a product with one
    constant matrix per axis. A map that already has this size is returned unchanged.
    """
    height, width = x.shape[1:3]
    if (height, width) == (size, size):
        return x
    x = keras.ops.einsum("ih,nhwc->niwc", _pooling_matrix(height, size).astype(x.dtype), x)
    return keras.ops.einsum("jw,niwc->nijc", _pooling_matrix(width, size).astype(x.dtype), x)


def _pooling_matrix(length: int, size: int) -> np.ndarray:
    """Return the averaging matrix float32 [size, length]; each row sums to one."""
    matrix = np.zeros((size, length), np.float32)
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def from_torch(state: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Convert torchvision's AlexNet state dict (as arrays) to {Keras layer: [kernel, bias]}.

    Convolutions [out, in, h, w] become [h, w, in, out]; `fc6` is reordered from PyTorch's
    channel-first flattening to Keras's channel-last one. The ImageNet layer `classifier.6` is
    omitted.
    """
    names = {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc6": "classifier.1",
        "fc7": "classifier.4",
    }
    weights = {}
    for layer, name in names.items():
        kernel, bias = np.asarray(state[f"{name}.weight"]), np.asarray(state[f"{name}.bias"])
        if layer.startswith("conv"):
            kernel = kernel.transpose(2, 3, 1, 0)
        elif layer == "fc6":
            kernel = kernel.reshape(-1, 256, POOLED, POOLED).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(POOLED * POOLED * 256, -1)
        else:
            kernel = kernel.T
        weights[layer] = [kernel, bias]
    return weights
