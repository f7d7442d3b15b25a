"""Conversion of torchvision's weights."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cxr_tf.config import ConvertAlexNetWeights
from cxr_tf.errors import UserError
from cxr_tf.models import alexnet, weights
from cxr_tf.models.alexnet_conversion import convert_alexnet_weights
from cxr_tf.models.classifier import build_classifier


def torch_with(state: dict[str, np.ndarray]) -> SimpleNamespace:
    """Return a stand-in for PyTorch that loads these arrays from any file."""
    tensors = {name: SimpleNamespace(numpy=lambda v=v: v) for name, v in state.items()}
    return SimpleNamespace(load=lambda path, **how: tensors)


@pytest.mark.usefixtures("no_drawing")
def test_converted_weights_load_into_alexnet(
    state_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "alexnet.pth", tmp_path / "alexnet_notop.weights.h5"
    source.touch()
    monkeypatch.setitem(sys.modules, "torch", torch_with(state_dict))
    settings = ConvertAlexNetWeights(state_dict=str(source), out=str(out))
    convert_alexnet_weights(settings)
    assert set(tmp_path.iterdir()) == {source, out}
    model = build_classifier("alexnet", classes=2, image_size=64)
    weights.load_weights(model, "alexnet", str(out))
    for layer, (kernel, bias) in alexnet.from_torch(state_dict).items():
        np.testing.assert_array_equal(model.get_layer(layer).kernel, kernel)
        np.testing.assert_array_equal(model.get_layer(layer).bias, bias)
    with pytest.raises(UserError, match="exists"):
        convert_alexnet_weights(settings)


@pytest.mark.usefixtures("no_drawing")
def test_conversion_of_another_network_raises(
    state_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "x.weights.h5"
    out.parent.mkdir()
    source = tmp_path / "a.pth"
    with pytest.raises(UserError, match="no such file"):
        convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    source.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match="pip install torch"):
            convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    with pytest.raises(UserError, match="must end in"):
        convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out="weights.h5"))
    narrow = {**state_dict, "features.3.weight": state_dict["features.3.weight"][:100]}
    lacking = {k: v for k, v in state_dict.items() if k != "features.8.bias"}
    for state, message in ((narrow, "not torchvision's"), (lacking, r"features\.8\.bias")):
        monkeypatch.setitem(sys.modules, "torch", torch_with(state))
        with pytest.raises(UserError, match=message):
            convert_alexnet_weights(ConvertAlexNetWeights(state_dict=str(source), out=str(out)))
    assert list(out.parent.iterdir()) == []
