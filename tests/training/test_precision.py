"""The choice of the training precision."""

from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf

from cxr_tf.classification.resolved import resolve
from cxr_tf.config import TrainClassifier


@pytest.mark.parametrize(
    ("flags", "backbone", "size", "precision"),
    [
        ("avx512f avx512_bf16", "vgg16", 64, "mixed_bfloat16"),
        ("avx512f avx512_bf16", "resnet50", 95, "float32"),
        ("avx512f avx512_bf16", "resnet50", 96, "mixed_bfloat16"),
        ("avx512f", "vgg16", 224, "float32"),
    ],
)
def test_auto_precision_depends_on_processor_and_network(
    flags: str, backbone: str, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is trained from scratch always gets float32."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _=None: [])
    monkeypatch.setattr(Path, "read_text", lambda _: flags)
    auto = TrainClassifier(backbone=backbone, image_size=size)  # type: ignore[arg-type]
    assert resolve(auto).precision == precision
    assert resolve(replace(auto, weights="none")).precision == "float32"
    given = TrainClassifier(backbone="vgg16", image_size=64, precision="float32")
    assert resolve(given).precision == "float32"
