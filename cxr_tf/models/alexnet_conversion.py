"""Convert torchvision's AlexNet weights to a file for --weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_tf.config import ConvertAlexNetWeights
from cxr_tf.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

# torchvision's image size for AlexNet; the weights fit any size.
IMAGE_SIZE = 224


def convert_alexnet_weights(settings: ConvertAlexNetWeights) -> None:
    """Write the weights file; raise UserError for a wrong source or an existing target."""
    source, target = Path(settings.state_dict).expanduser(), Path(settings.out).expanduser()
    if not target.name.endswith(".weights.h5"):
        raise UserError(f"--out {settings.out}: the name must end in .weights.h5")
    if target.exists():
        raise UserError(f"--out {settings.out} already exists: remove it or choose another name")
    if not target.parent.is_dir():
        raise UserError(f"--out {settings.out}: no such folder {target.parent}")
    state = read_state_dict(source)

    import keras

    from cxr_tf.files import write_atomically
    from cxr_tf.models.alexnet import alexnet_features, from_torch

    try:
        weights = from_torch(state)
        inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
        model = keras.Model(inputs, alexnet_features(inputs), name="alexnet")
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(weights[layer.name])
    except KeyError as error:
        raise UserError(f"{source} is not torchvision's AlexNet: it has no {error}") from error
    except ValueError as error:  # an array has the wrong shape
        reason = str(error).splitlines()[0]
        raise UserError(f"{source} is not torchvision's AlexNet: {reason}") from error

    def write(temporary: Path) -> None:
        # Keras requires the suffix, which the temporary name lacks.
        suffixed = temporary.with_name(temporary.name + ".weights.h5")
        try:
            model.save_weights(suffixed)
            suffixed.replace(temporary)
        finally:
            suffixed.unlink(missing_ok=True)

    write_atomically(target, write)
    print(
        f"{target}: {model.count_params():,} parameters; use it with --weights "
        "(train_classifier.py) or --alexnet-weights (compare_backbones.py, run_study.py)"
    )


def read_state_dict(path: Path) -> "dict[str, np.ndarray]":
    """Read the arrays of a PyTorch state dict; raise UserError if it or PyTorch is missing."""
    if not path.is_file():
        raise UserError(
            f"no such file: {path} (torchvision's weights are at "
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth)"
        )
    try:
        import torch
    except ImportError as error:
        raise UserError("this command needs PyTorch: pip install torch") from error
    try:
        # weights_only, because a pickle can run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    # torch passes on the errors of its readers: pickle, zip, runtime and attribute errors.
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read as a PyTorch state dict: {reason}") from error
