"""The model card of an export."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

CARD = Path("assets.extra") / "model_card.json"


def describe_signature(signature: Any) -> dict[str, Any]:
    """Describe a SignatureDef for the model card: {inputs, outputs}: {name: dtype and shape}."""
    return {
        side: {
            name: {
                "dtype": tf.as_dtype(info.dtype).name,
                # None is the number of images.
                "shape": [None if d.size < 0 else d.size for d in info.tensor_shape.dim],
            }
            for name, info in sorted(tensors.items())
        }
        for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that an export depends on."""
    packages = {p: metadata.version(p) for p in ("tensorflow", "keras", "numpy")}
    return {"python": platform.python_version(), **packages}
