"""Tests of the results that the demo page shows, without the page itself."""

from pathlib import Path

import numpy as np
import pytest

from cxr_tf.config import Demo
from cxr_tf.demo import analysis, html
from cxr_tf.demo.analysis import Image
from cxr_tf.demo.models import Model, Models, find_models
from cxr_tf.demo.session import Session, details, read_and_remove
from cxr_tf.errors import UserError


@pytest.fixture(scope="module")
def models(small_models: Path) -> Models:
    return find_models(Demo(saved_models=str(small_models), engine="tensorflow"))


def model(**card: object) -> Model:
    return Model("any", card, lambda contents: {}, None)


def test_models_are_offered_by_kind(models: Models, small_models: Path) -> None:
    assert models.names == {
        "classifier": ["binary", "tiny"],
        "knn": ["tiny-knn"],
        "autoencoder": ["tiny-autoencoder"],
    }
    assert models.load("classifier", "tiny") is models.load("classifier", "tiny")
    chosen = find_models(Demo(saved_models=str(small_models), classifier="tiny"))
    assert chosen.first["classifier"] == "tiny"
    with pytest.raises(UserError, match="available: binary, tiny"):
        find_models(Demo(saved_models=str(small_models), classifier="other"))
    with pytest.raises(UserError, match="train"):
        find_models(Demo(saved_models=str(small_models.parent / "none")))


def test_models_on_a_server_are_named_by_flags(small_models: Path) -> None:
    from fake_serving import Models as Served
    from fake_serving import rest_server

    with rest_server(Served(small_models)) as url:
        found = find_models(Demo(server=url, classifier="binary", autoencoder="tiny-autoencoder"))
        assert found.names["knn"] == [] and found.first["classifier"] == "binary"
        remote = found.load("classifier", "binary")
        # A server does not state the operating point: its own label is used.
        assert remote.threshold is None
        images = [analysis.example("normal"), analysis.example("normal")]
        analysis.predict(remote, images[:1])
        local = find_models(Demo(saved_models=str(small_models), engine="tensorflow"))
        analysis.predict(local.load("classifier", "binary"), images[1:])
        assert images[0].prediction["label"] == images[1].prediction["label"]
        analysis.explain(remote, images[0])
        assert images[0].heat is not None
    with pytest.raises(UserError, match="--classifier NAME"):
        find_models(Demo(server=url))


def test_bad_files_get_reasons_and_the_others_predictions(
    models: Models, phantoms: Path, tmp_path: Path
) -> None:
    good = next(phantoms.glob("t*/*/*.png"))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.dcm").write_bytes(b"")
    names = [tmp_path / "text.png", good, tmp_path / "cut.png", tmp_path / "empty.dcm"]
    images = [analysis.read_upload(path, path.name) for path in names]
    analysis.predict(models.load("classifier", "binary"), images)
    assert images[0].reason == "neither JPEG nor PNG"
    assert images[2].reason == "truncated or corrupt image"
    assert str(tmp_path) not in images[3].reason and images[3].reason
    assert sum(images[1].prediction["probabilities"].values()) == pytest.approx(1)
    header, rows = analysis.table(images)
    assert header == ["#", "file", "label", "normal", "pneumonia", "problem"]
    assert [row[-1] for row in rows] == [image.reason for image in images]


def test_image_gets_a_heatmap_an_anomaly_map_and_similar_cases(models: Models) -> None:
    image = analysis.example("bacterial")
    analysis.predict(models.load("classifier", "binary"), [image])
    analysis.explain(models.load("classifier", "binary"), image)
    analysis.find_neighbors(models.load("knn", "tiny-knn"), image)
    analysis.detect_anomaly(models.load("autoencoder", "tiny-autoencoder"), image)
    assert image.heat is not None and image.heat.shape == (64, 64)
    assert image.anomaly_map is not None and image.anomaly_map.shape == (128, 128)
    paths = image.neighbors["neighbor_paths"]
    pictures = analysis.thumbnails([*paths, "gone.png"], [Path()], size=32)
    assert [p.shape for p in pictures[:-1]] == [(32, 32)] * len(paths) and pictures[-1] is None
    page = html.cases(image.neighbors, pictures[:-1])
    assert page.count("<img") == len(paths) and Path(paths[0]).name in page


def test_details_stop_when_another_image_is_selected(models: Models) -> None:
    session = Session()
    session.predict(models, [analysis.example("normal"), analysis.example("viral")], "binary")
    names = [next(iter(parts)) for parts in details(models, session, "tiny-knn", "", [Path()])]
    assert names == ["cases", "views"]
    running = details(models, session, "tiny-knn", "", [Path()])
    assert "cases" in next(running)
    session.select(1)
    assert list(running) == []


def test_uploaded_files_are_read_and_removed(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "a.png").write_bytes(next(phantoms.glob("t*/*/*.png")).read_bytes())
    gone = tmp_path / "other" / "b.png"
    images = read_and_remove([tmp_path / "hash" / "a.png", gone])
    assert images[0].content and images[1].reason == "No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_operating_point_sets_the_label_of_two_classes() -> None:
    image = Image("a", prediction={"label": "sick", "probabilities": {"fine": 0.4, "sick": 0.6}})
    assert [analysis.label_at(image, t) for t in (None, 0.6, 0.61)] == ["sick", "sick", "fine"]
    three = Image("b", prediction={"label": "x", "probabilities": {"x": 0.5, "y": 0.3, "z": 0.2}})
    assert analysis.label_at(three, 0.9) == "x"


def test_every_problem_of_an_image_has_a_warning() -> None:
    probabilities = {"normal": 0.1, "bacterial": 0.5, "viral": 0.4}
    image = Image(
        "a",
        prediction={
            **{"label": "bacterial", "probabilities": probabilities, "is_novel": True},
            "prediction_set": [False, True, True],
        },
        neighbors={"novelty": 1.2},
        anomaly={"is_anomaly": False},
    )
    found = " ".join(analysis.warnings_of(image, model(data_is_phantom=True)))
    for words in (
        *("synthetic phantoms", "Unlike the training images", "No similar case"),
        *("Cannot distinguish bacterial from viral", "classifies this image as normal"),
    ):
        assert words in found
    sure = Image("b", prediction={"label": "normal", "probabilities": probabilities})
    assert analysis.warnings_of(sure, model()) == []


def test_file_names_are_escaped() -> None:
    name = "<script>alert(1)</script>{{value}}${value}.png"
    page = html.verdict(Image(name, reason="bad"), None, [])
    assert "<script>" not in page and "{{" not in page and "${" not in page


def test_a_picture_keeps_the_aspect_ratio_of_the_radiograph() -> None:
    from cxr_tf.figures.overlays import overlay, png

    wide = np.zeros((40, 80), np.uint8)
    assert "aspect-ratio:80/40" in html.radiograph(png(wide))
    heat = np.zeros((8, 8))
    heat[0, 0], heat[7, 7] = 1, -0.5
    drawn = overlay(wide, heat).astype(int)
    assert drawn.shape == (40, 80, 3)
    assert drawn[1, 1, 0] > drawn[1, 1, 2] + 50, "red above 0"
    assert drawn[-2, -2, 2] > drawn[-2, -2, 0] + 20, "blue below 0"
    assert drawn[20, 40].max() == 0, "clear at 0"
