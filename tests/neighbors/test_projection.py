"""t-SNE, its quality, and the files of TensorBoard's projector."""

import csv
from pathlib import Path

import numpy as np
import pytest
from fitted_knn import Fitted
from openTSNE import TSNE


def test_tsne_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, openTSNE does not search this many points exactly."""
    from cxr_tf.neighbors import projection

    values = np.random.default_rng(0).normal(size=(1200, 12)).astype(np.float32)
    planes = []
    for threads in (1, 3):

        def short(threads: int = threads, **given):
            given |= {"n_jobs": threads, "n_iter": 30, "early_exaggeration_iter": 20}
            return TSNE(**given)

        monkeypatch.setattr(projection, "TSNE", short)
        planes.append(projection.project(values, seed=0).plane)
    np.testing.assert_array_equal(*planes)
    assert planes[0].std() > 0


def test_silhouette_is_nan_for_one_test_image_per_class() -> None:
    from cxr_tf.neighbors import projection

    rng = np.random.default_rng(0)
    labels, is_test = np.array([0, 1] * 10), np.arange(20) < 2
    values = rng.normal(size=(20, 8)).astype(np.float32)
    projected = projection.Projected(values, values[:, :2])
    numbers = projection.quality(projected, labels, is_test, ("a", "b"))
    assert np.isnan(numbers["silhouette"])
    assert np.isfinite(numbers["purity"])
    more = projection.quality(projected, labels, np.arange(20) < 6, ("a", "b"))
    assert np.isfinite(more["silhouette"])


def test_projector_files_are_readable_by_the_plugin(fitted: Fitted) -> None:
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    config = text_format.Parse(
        (fitted.run / "projector_config.pbtxt").read_text(), ProjectorConfig()
    )
    names = [e.tensor_name for e in config.embeddings]
    assert names[0] == "t-SNE after training"
    assert any("before" in n for n in names)
    for entry in config.embeddings:
        values = np.loadtxt(fitted.run / entry.tensor_path, delimiter="\t")
        assert list(values.shape) == list(entry.tensor_shape)
        lines = (fitted.run / entry.metadata_path).read_text().splitlines()
        assert len(lines) == len(values) + 1
        assert lines[0].split("\t")[:3] == ["class", "split", "correct"]


def test_projector_metadata_escapes_any_name(tmp_path: Path) -> None:
    from cxr_tf.neighbors.projection import _write_table
    from cxr_tf.study.report_pictures import read_metadata

    rows = [["path", "patient"], ["a\u2028b  c.png", "Smith\nJohn\t3"], ["d.png", ""]]
    _write_table(tmp_path / "metadata.tsv", rows)
    assert read_metadata(tmp_path / "metadata.tsv") == [
        {"path": "a\u2028b  c.png", "patient": "Smith John 3"},
        {"path": "d.png", "patient": ""},
    ]


def test_sprite_arranges_thumbnails_row_by_row() -> None:
    from cxr_tf.neighbors.projection import sprite

    thumbnails = np.stack([np.full((4, 4, 1), n, np.uint8) for n in range(1, 8)])
    thumbnails[5, 0, 3] = 99
    sheet = sprite(thumbnails)
    assert sheet.shape == (12, 12)
    assert (sheet[4:8, :4] == 4).all()
    assert sheet[4, 11] == 99
    assert (sheet[8:, 4:] == 0).all()


def test_sprite_order_matches_the_projector_metadata(fitted: Fitted) -> None:
    """The order of the rows differs from that of the files: copies come last within train."""
    from PIL import Image

    from cxr_tf.data.decoding import load_images
    from cxr_tf.neighbors.projection import sprite
    from cxr_tf.neighbors.results import THUMBNAIL

    with (fitted.run / "projector" / "metadata.tsv").open(newline="") as lines:
        paths = [row["path"] for row in csv.DictReader(lines, delimiter="\t")]
    expected, _ = load_images(paths, THUMBNAIL)
    with Image.open(fitted.run / "projector" / "sprite.png") as shown:
        np.testing.assert_array_equal(np.asarray(shown), sprite(expected))
