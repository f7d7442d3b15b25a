"""Heatmaps of predict.py: their folder is replaced completely or not at all."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cxr_tf.config import Predict
from cxr_tf.errors import UserError
from cxr_tf.evaluation import predict, prediction_output
from cxr_tf.serving import open_model
from cxr_tf.serving.store import versions


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[str]:
    return [str(p) for p in sorted((phantoms / "test").rglob("*.png"))[:5]]


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heatmaps are hot at the top left and cold at the bottom right."""
    heatmap = np.zeros((1, 8, 8), np.float32)
    heatmap[:, :3, :3], heatmap[:, 5:, 5:] = 0.2, -0.2

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def explain(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        n = tf.size(image_bytes)
        return {
            "heatmap": tf.repeat(heatmap, n, axis=0),
            "reconstruction": tf.fill([n, 8, 8], 300.0),
            "label": tf.fill([n], "viral"),
            "score": tf.range(tf.cast(n, tf.float32)),
        }

    def write(folder: str) -> None:
        tf.saved_model.save(tf.Module(), folder, {"occlusion": explain, "explain": explain})

    base = tmp_path_factory.mktemp("models") / "heat"
    return versions.write_version(base, write, card={"kind": "classifier", "image_size": 64})


def settings(heat: Path, images: list[str], output: Path, **changes: Any) -> Predict:
    return Predict(
        model=str(heat), images=tuple(images), output=str(output), engine="tensorflow", **changes
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_heatmaps_are_drawn_over_the_radiographs(
    heat: Path, images: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "maps"
    order = settings(heat, images, output, signature="occlusion", batch_size=2)
    predict.predict(order)
    assert [p.name for p in tmp_path.iterdir()] == ["maps"]
    written = rows(output / "predictions.csv")
    assert list(written[0]) == ["path", "label", "score"]
    for row, path in enumerate(images):
        stem = f"{row:05d}-{Path(path).stem}"
        drawn = np.asarray(Image.open(output / f"{stem}.png").convert("RGB"), float)
        height, width = drawn.shape[:2]
        # The right half shows the heatmap, before its colour bar.
        panel = drawn[:, width // 2 : int(width * 0.86)]
        red = np.argwhere(panel[..., 0] - panel[..., 2] > 30).mean(axis=0)
        blue = np.argwhere(panel[..., 2] - panel[..., 0] > 30).mean(axis=0)
        assert (red < blue - height / 6).all(), (red, blue)
        assert (np.asarray(Image.open(output / f"{stem}-reconstruction.png")) == 255).all()
    with pytest.raises(UserError, match="exists"):
        predict.predict(order)


def test_only_folders_written_by_the_command_are_overwritten(
    heat: Path, images: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out" / "maps"
    output.parent.mkdir()
    order = settings(heat, images[:2], output, signature="explain", overwrite=True)
    predict.predict(order)
    (output / "predictions.csv").write_text("older")
    predict.predict(order)
    assert len(rows(output / "predictions.csv")) == 2
    (output / "thesis.docx").write_text("years of work")
    with pytest.raises(UserError, match="files that this command did not write"):
        predict.predict(order)
    with pytest.raises(UserError, match="is not a folder"):
        prediction_output.check_folder(output / "thesis.docx", overwrite=True)
    (output / "thesis.docx").unlink()
    (tmp_path / "empty").mkdir()
    prediction_output.check_folder(tmp_path / "empty", overwrite=True)

    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"damaged\.dcm"):
        predict.predict(
            settings(
                heat, [*images, str(damaged)], output,
                signature="explain", overwrite=True, batch_size=2,
            )
        )  # fmt: skip
    assert [p.name for p in output.parent.iterdir()] == ["maps"]
    assert len(rows(output / "predictions.csv")) == 2


def test_output_must_fit_the_signature(tmp_path: Path) -> None:
    for arguments, message in (
        ({"signature": "occlusion"}, "needs --output FOLDER"),
        ({"signature": "embed"}, "needs --output FILE"),
        ({"signature": "explain", "output": "x.csv"}, "writes a folder"),
        ({"output": "x"}, "ends in .csv or .json"),
        ({"output": str(tmp_path / "no" / "x.csv")}, "no such folder"),
        ({"version": 2}, "are for --server"),
    ):
        with pytest.raises(UserError, match=message):
            order = Predict(model="m", images=("x",), **arguments)
            prediction_output.check_output(order)
            open_model.open_signature(order)
