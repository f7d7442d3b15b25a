"""Exports to other formats give the SavedModel's probabilities with documented preprocessing."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cxr_tf.config import Export
from cxr_tf.data.decoding import decode_radiograph
from cxr_tf.errors import UserError
from cxr_tf.evaluation import export
from cxr_tf.files import read_json
from cxr_tf.serving import conversion

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def settings(small_models: Path, phantoms: Path, out: Path, **flags: Any) -> Export:
    flags = {"model": str(small_models / "tiny"), "format": "onnx", **flags}
    return Export(data=str(phantoms), out=str(out), batch_size=4, **flags)


@pytest.mark.parametrize("name", list(conversion.FILES))
def test_each_format_gives_the_probabilities_of_the_saved_model(
    small_models: Path, phantoms: Path, tmp_path: Path, name: str
) -> None:
    out = export.export(settings(small_models, phantoms, tmp_path / "out", format=name))
    assert {"model_card.json", conversion.FILES[name]} <= {p.name for p in out.iterdir()}
    card = read_json(out / "model_card.json")
    verified = card["converted"]["verified"]
    assert verified["images"] == len(list((phantoms / "test").rglob("*.png")))
    assert verified["largest_difference"] < 1e-5 and verified["changed_labels"] == 0
    assert list(card["signatures"]) == ["tensor"] and card["classes"] and card["name"] == "tiny"
    # Any number of images, and each by itself.
    run = conversion.open_converted(out / conversion.FILES[name])
    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(run(images[1:2])[0], run(images)[1], atol=1e-6)


def test_the_card_records_the_auroc_of_int8_and_float32(
    small_models: Path, phantoms: Path, tmp_path: Path
) -> None:
    flags = {"format": "litert", "precision": "int8"}
    out = export.export(settings(small_models, phantoms, tmp_path / "out", **flags))
    verified = read_json(out / "model_card.json")["converted"]["verified"]
    assert 1e-5 < verified["largest_difference"] < 0.05
    assert abs(verified["auroc"] - verified["auroc_float32"]) < 0.1


@pytest.mark.parametrize("error", [2e-3, np.nan])
def test_a_conversion_with_different_probabilities_fails_and_writes_nothing(
    small_models: Path,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: float,
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession
    right = session.run
    monkeypatch.setattr(session, "run", lambda *given: [right(*given)[0] + error])
    with pytest.raises(UserError, match=r"differ from .*allowed: 1e-03.*nothing was written"):
        export.export(settings(small_models, phantoms, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_user_errors_are_explained(
    small_models: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(match: str, out: Path = tmp_path / "out", **flags: Any) -> None:
        with pytest.raises(UserError, match=match):
            export.export(settings(small_models, phantoms, out, **flags))

    fails("of kind 'knn', without the signature 'tensor'", model=str(small_models / "tiny-knn"))
    fails("--precision int8 is for --format litert", precision="int8")
    fails("exists: remove it or choose another name", out=tmp_path)
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    fails(r"needs tf2onnx and onnxruntime: pip install -r requirements-export\.txt")


# ---------------------------------------------------------------------- docs/export.md


@pytest.fixture(scope="module")
def read_radiograph() -> Any:
    """The preprocessing function in the documentation."""
    (code,) = re.findall(r"```python\n(.*?def read_radiograph.*?)```", DOCS.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["read_radiograph"]


def encode(mode: str, suffix: str, sides: tuple[int, int]) -> bytes:
    """Encode a smooth picture with noise, in one of the modes that image files have."""
    rng = np.random.default_rng(sum(sides))
    width, height = sides
    coarse = rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    planes = np.asarray(Image.fromarray(coarse, "RGBA").resize(sides)).astype(np.int16)
    planes = np.clip(planes + rng.integers(-9, 10, planes.shape), 0, 255).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(planes[..., 0].astype(np.uint16) * 257)
    else:
        count = len(Image.new(mode, (1, 1)).getbands())
        image = Image.fromarray(planes[..., :count].squeeze(), mode)
    assert image.size == (width, height)
    file = io.BytesIO()
    image.save(file, suffix, **({"quality": 90} if suffix == "JPEG" else {}))
    return file.getvalue()


MODES = ["L PNG", "RGB PNG", "RGBA PNG", "LA PNG", "I;16 PNG", "L JPEG", "RGB JPEG"]


@pytest.mark.parametrize("stored", MODES)
@pytest.mark.parametrize("sides", [(611, 500), (1301, 900), (50, 40)])
def test_the_documented_preprocessing_gives_the_pixels_of_the_saved_model(
    read_radiograph: Any, stored: str, sides: tuple[int, int]
) -> None:
    content = encode(*stored.split(), sides)
    images = read_radiograph(io.BytesIO(content), 64)
    assert images.shape == (64, 64, 3) and images.dtype == np.float32
    expected = decode_radiograph(tf.constant(content), 64).numpy().astype(np.float32)
    difference = np.abs(images - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02
