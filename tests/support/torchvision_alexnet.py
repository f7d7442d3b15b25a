"""The logits of torchvision's AlexNet for fixed pseudo-random weights, stored beside this file.

pip install torch torchvision
python tests/support/torchvision_alexnet.py

writes `torchvision_alexnet.npz`, with which the tests compare Keras's AlexNet without PyTorch.
"""

from pathlib import Path

import numpy as np

LOGITS = Path(__file__).with_suffix(".npz")
SIZES = (224, 96, 64)

# torchvision's layer list: {name in its state dict: shape of the weight}.
SHAPES = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 256 * 6 * 6),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}


def draw(shape: tuple[int, ...]) -> np.ndarray:
    """Draw normally distributed numbers, the same for a shape on every machine: float32."""
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def weights() -> dict[str, np.ndarray]:
    """Draw a state dict in torch's order, with weights so large that logits are of order 1."""
    state = {}
    for name, shape in SHAPES.items():
        state[f"{name}.weight"] = draw(shape) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        state[f"{name}.bias"] = draw(shape[:1]) * np.float32(0.1)
    return state


def images(size: int) -> np.ndarray:
    """Draw normalised images, float32 [2, size, size, 3]."""
    return draw((2, size, size, 3))


def main() -> None:
    """Write the logits, float32 [2, 1000] for each size."""
    import torch
    import torchvision

    network = torchvision.models.alexnet(weights=None).eval()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in weights().items()})
    logits = {}
    for size in SIZES:
        batch = torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            logits[f"size_{size}"] = network(batch).numpy()
    np.savez_compressed(LOGITS, **logits)


if __name__ == "__main__":
    main()
