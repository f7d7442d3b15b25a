"""PyTorch counterparts of the networks, and of training as in PyTorch's documentation."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from PIL import Image

from cxr_tf.models import backbones
from cxr_tf.models.layer_graph import read_network


def as_torch(model: keras.Model) -> Any:
    """Convert a network to PyTorch: [N, 3, S, S] in 0..255 -> logits [N, C].

    Supports flat float32 models, whose softmax is left out, and keeps frozen layers frozen. The
    result is in inference mode. Raises ValueError for a layer that is not supported.
    """
    import torch
    from torch import nn

    class ChannelsLast(nn.Module):
        """Permute to [N, H, W, C] before flattening, as Keras does."""

        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    def tensor(values: Any) -> Any:
        return torch.from_numpy(np.array(values, np.float32))

    def module(operation: Any, padding: int) -> Any:
        part = counterpart(operation, padding)
        return part.requires_grad_(operation.trainable)

    def counterpart(operation: Any, padding: int) -> Any:
        layers = keras.layers
        if isinstance(operation, layers.Conv2D):
            if operation.padding == "same":
                padding = operation.kernel_size[0] // 2
            conv = nn.Conv2d(
                operation.kernel.shape[2], operation.filters, operation.kernel_size,
                operation.strides, padding,
            )  # fmt: skip
            conv.weight.data = tensor(np.transpose(operation.kernel, (3, 2, 0, 1)))
            conv.bias.data = tensor(operation.bias)
            relu = operation.activation is keras.activations.relu
            return nn.Sequential(conv, nn.ReLU()) if relu else conv
        if isinstance(operation, layers.BatchNormalization):
            norm = nn.BatchNorm2d(operation.gamma.shape[0], eps=operation.epsilon)
            norm.weight.data, norm.bias.data = tensor(operation.gamma), tensor(operation.beta)
            norm.running_mean = tensor(operation.moving_mean)
            norm.running_var = tensor(operation.moving_variance)
            return norm
        if isinstance(operation, layers.Dense):
            dense = nn.Linear(*operation.kernel.shape)
            dense.weight.data = tensor(np.transpose(operation.kernel))
            dense.bias.data = tensor(operation.bias)
            relu = operation.activation is keras.activations.relu
            return nn.Sequential(dense, nn.ReLU()) if relu else dense
        if isinstance(operation, layers.MaxPooling2D):
            # After a ReLU, padding with 0 and with minus infinity are equivalent.
            return nn.MaxPool2d(operation.pool_size, operation.strides, padding)
        if isinstance(operation, layers.GlobalAveragePooling2D):
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if isinstance(operation, layers.Flatten):
            return ChannelsLast()
        if isinstance(operation, layers.Dropout):
            return nn.Dropout(operation.rate)
        if isinstance(operation, layers.Identity):
            return nn.Identity()
        if isinstance(operation, layers.Activation):
            return nn.ReLU()
        name = type(operation).__name__
        raise ValueError(f"converting {name} to PyTorch is not supported by this benchmark")

    read = read_network(model)
    steps = read.after
    first = next(
        k for k, s in enumerate(steps)
        if isinstance(s.operation, (keras.layers.Conv2D, keras.layers.ZeroPadding2D))
    )  # fmt: skip
    # The preprocessing, except standardisation, is affine in the colours: four colours define it.
    before = keras.Model(read.standardised, steps[first].inputs[0])
    colours = np.zeros((4, *model.input_shape[1:]), np.float32)
    colours[1:] = 255 * np.eye(3, dtype=np.float32)[:, None, None]
    seen = np.asarray(before(colours))[:, 0, 0]
    affine = nn.Conv2d(3, 3, 1)
    affine.weight.data = tensor((seen[1:] - seen[0]).T / 255)[..., None, None]
    affine.bias.data = tensor(seen[0])
    affine.requires_grad_(False)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.parts = affine, nn.ModuleList()
            self.plan: list[tuple[list[int], int, bool]] = []
            padded: dict[int, tuple[int, int]] = {}
            for step in steps[first:]:
                inputs, output = [id(x) for x in step.inputs], id(step.output)
                if isinstance(step.operation, keras.layers.ZeroPadding2D):
                    padded[output] = (inputs[0], step.operation.padding[0][0])
                    continue
                if isinstance(step.operation, keras.layers.Softmax):
                    break
                source, padding = padded.get(inputs[0], (inputs[0], 0))
                add = isinstance(step.operation, keras.layers.Add)
                parts = [] if add else [module(step.operation, padding)]
                parts += [module(f, 0) for f in step.followers]
                self.parts.append(nn.Sequential(*parts))
                self.plan.append((inputs if add else [source], output, add))

        def forward(self, x: Any) -> Any:
            if read.is_standardised:
                # As `backbones.standardise`.
                spread, mean = torch.std_mean(x, (1, 2, 3), correction=0, keepdim=True)
                x = (x - mean) / (spread + 1.0) * backbones.GRAY_SPREAD + backbones.GRAY_MEAN
            values = {id(steps[first].inputs[0]): self.before(x)}
            for part, (inputs, output, add) in zip(self.parts, self.plan, strict=True):
                value = values[inputs[0]]
                if add:
                    value = value + values[inputs[1]]
                values[output] = value = part(value)
            return value

    return Network().eval()


class Fit:
    """Fine-tuning on one batch, as in PyTorch's documentation of autocast and channels_last.

    https://docs.pytorch.org/docs/stable/amp.html (CPU, bfloat16) and
    https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html. `network` is
    from `as_torch`; images float32 [N, S, S, 3] in 0..255, labels int [N]. Without `autocast`, the
    network runs in float32, for machines without bfloat16.
    """

    def __init__(
        self,
        network: Any,
        images: np.ndarray,
        labels: np.ndarray,
        rate: float,
        decay: float,
        *,
        autocast: bool,
    ) -> None:
        import torch

        self._autocast = autocast

        self._network = network.to(memory_format=torch.channels_last)
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self._images = x.to(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(labels)
        moving = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=decay)

    def steps(self, count: int) -> None:
        """Train for `count` steps."""
        from torch import nn

        self._network.train()
        for part in self._network.modules():
            # A frozen BatchNorm keeps its statistics, as in Keras.
            if isinstance(part, nn.BatchNorm2d) and not part.weight.requires_grad:
                part.eval()
        for _ in range(count):
            self._optimizer.zero_grad()
            self._loss().backward()
            self._optimizer.step()

    def loss(self) -> float:
        """Return the cross-entropy of the batch in inference mode."""
        import torch

        self._network.eval()
        with torch.no_grad():
            return self._loss().item()

    def _loss(self) -> Any:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            return torch.nn.functional.cross_entropy(self._network(self._images), self._labels)


class Files:
    """A PyTorch dataset of image files with labels; Pillow decodes and resizes the images.

    Each item is an image, float32 [3, S, S] in 0..255, and its label.
    """

    def __init__(self, files: Sequence[tuple[str, int]], size: int) -> None:
        self._files, self._size = files, size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Any, float]:
        import torch

        path, label = self._files[row]
        with Image.open(path) as opened:
            side = (self._size, self._size)
            image = opened.convert("RGB").resize(side, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1), float(label)


def transfer(
    backbone: Any, train: Files, val: Files, *, width: int, batch: int, epochs: int
) -> np.ndarray:
    """Train a linear layer on a frozen backbone with Adam; return the logits [N] of `val`.

    This follows https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html, with
    the dropout, loss and optimizer of Keras's guide: each epoch decodes the files, runs the
    backbone, and validates. The loader is the default one, which runs in this process, because
    decoding takes only a few percent of the backbone's time.
    """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(head.parameters())
    batches = DataLoader(train, batch_size=batch, shuffle=True)
    for _ in range(epochs):
        head.train()
        for images, labels in batches:
            with torch.no_grad():
                features = backbone(images)
            loss = nn.functional.binary_cross_entropy_with_logits(
                head(features)[:, 0], labels.float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            logits = [head(backbone(x))[:, 0].numpy() for x, _ in DataLoader(val, batch)]
    return np.concatenate(logits)
