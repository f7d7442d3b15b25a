"""From a trained classifier to heatmaps on disk, in the SavedModel, and what they are worth."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_classifier import random_classifier

from cxr_tf import metrics
from cxr_tf.config import Explain
from cxr_tf.data.loading import open_catalog
from cxr_tf.errors import UserError
from cxr_tf.explain import cams, faithfulness, inputs
from cxr_tf.explain import explain as explain_explain
from cxr_tf.explain import maps as explain_maps
from cxr_tf.files import write_json
from cxr_tf.models.classifier import build_classifier, calibrated
from cxr_tf.models.occlusion import occluder
from cxr_tf.runs import Run
from cxr_tf.serving import export, loading

THRESHOLD = 0.4


@pytest.fixture(scope="module")
def classifier(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run as training leaves it, of a network that depends on all of the image."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    write_run(folder, random_classifier(tiny_backbone, 64, classes=2), str(phantoms))
    return folder


def write_run(folder: Path, model: keras.Model, data: str) -> None:
    folder.mkdir()
    config = {
        "job": "classifier",
        "settings": {"data": data, "seed": 0},
        "data_fingerprint": open_catalog(data).fingerprint(),
    }
    write_json(folder / "config.json", config)
    facts = {"classes": ["normal", "pneumonia"], "task": "binary", "threshold": THRESHOLD}
    write_json(folder / "metrics.json", {"model": facts})
    keras.saving.save_model(model, folder / "model.keras")


@pytest.fixture(scope="module")
def explained(
    classifier: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Explain]:
    settings = Explain(
        classifier=str(classifier),
        data=str(phantoms),
        count=4,
        name="mine",
        logs=str(tmp_path_factory.mktemp("explained")),
    )
    return explain_explain.explain(settings), settings


def arrays(run: Run, method: str = "occlusion") -> dict[str, np.ndarray]:
    with np.load(run.directory / f"heatmaps-{method}.npz", allow_pickle=False) as stored:
        return dict(stored)


def test_what_is_written(explained: tuple[Run, Explain]) -> None:
    run, _ = explained
    stored = arrays(run)
    assert stored["heatmaps"].shape == (4, 64, 64) and np.isfinite(stored["heatmaps"]).all()
    # Evenly over classes, and within pneumonia over findings.
    assert sorted(stored["findings"].tolist()) == ["bacterial", "normal", "normal", "viral"]
    pictures = sorted(p.name for p in (run.directory / "heatmaps").iterdir())
    assert pictures == [f"{k}-{Path(p).stem}-occlusion.png" for k, p in enumerate(stored["paths"])]
    assert sorted(p.name for p in (run.directory / "figures").iterdir()) == [
        "contact_sheet.png",
        "heatmaps_alone.png",
        "mean_by_class.png",
    ]
    row = run.metrics["methods"]["occlusion"]
    assert 0 <= row["outside_chest"] <= 1
    assert run.metrics["occlusion"] == {"patch": 10, "stride": 5, "patches": 144}
    assert run.config["settings"]["patch"] == 10  # as resolved
    events = [p for p in run.directory.iterdir() if p.name.startswith("events")]
    tags = {
        value.tag
        for p in events
        for record in tf.data.TFRecordDataset(str(p)).as_numpy_iterator()
        for value in tf.compat.v1.Event.FromString(record).summary.value
    }
    assert {"contact_sheet", "mean_by_class", "occlusion/outside_chest"} <= tags
    assert any(t.startswith("occlusion/0-phantom") for t in tags)


def test_served_heatmaps_are_those_of_the_script(
    explained: tuple[Run, Explain], classifier: Path, tmp_path: Path
) -> None:
    stored = arrays(explained[0])
    model = keras.saving.load_model(classifier / "model.keras", compile=False)
    folder = export.export_classifier(
        model,
        tmp_path / "tiny",
        classes=("normal", "pneumonia"),
        threshold=THRESHOLD,
        card={"classes": ["normal", "pneumonia"], "image_size": 64},
    )
    served = loading.load_served(str(folder))
    contents = [Path(p).read_bytes() for p in stored["paths"]]
    out = served.signature("occlusion")(image_bytes=tf.constant(contents))
    assert {k: v.shape.as_list() for k, v in out.items()} == {
        "heatmap": [4, 64, 64],
        "classes": [4, 2],
        "label": [4],
        "probabilities": [4, 2],
    }
    np.testing.assert_allclose(out["heatmap"], stored["heatmaps"], atol=1e-4)
    np.testing.assert_allclose(out["probabilities"], stored["probabilities"], atol=1e-4)
    called = [stored["classes"][k] for k in stored["predicted"]]
    assert [x.decode() for x in out["label"].numpy()] == called
    assert np.abs(stored["heatmaps"]).max() > 1e-3  # or equality would say nothing
    # Each for itself: the batch does not matter.
    alone = served.signature("occlusion")(image_bytes=tf.constant(contents[2:3]))
    np.testing.assert_allclose(alone["heatmap"][0], out["heatmap"][2], atol=1e-5)


def test_images_of_which_nothing_is_known_and_a_named_target(
    explained: tuple[Run, Explain],
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = arrays(explained[0])
    settings = Explain(
        classifier=str(classifier),
        images=tuple(stored["paths"][[3, 0]].tolist()),
        target="normal",
        patch=32,
        stride=32,
        drop="logit",
        fill="noise",
        name="two",
        logs=str(tmp_path),
    )
    run = explain_explain.explain(settings)
    again = arrays(run)
    assert again["paths"].tolist() == stored["paths"][[3, 0]].tolist()
    assert again["targets"].tolist() == [0, 0]
    np.testing.assert_allclose(again["probabilities"], stored["probabilities"][[3, 0]], atol=1e-5)
    # Four patches: the map is constant on each quarter.
    quarter = again["heatmaps"][:, :32, 32:]
    assert np.ptp(quarter, axis=(1, 2)).max() < 1e-6
    with pytest.raises(UserError, match="exists and is finished"):
        explain_explain.explain(settings)
    assert run.metrics["correct"] is None  # nobody knows
    # What else is asked for has another name, and a file may be named from within its folder.
    monkeypatch.chdir(Path(stored["paths"][0]).parent)
    name = Path(stored["paths"][0]).name
    run = explain_explain.explain(dataclasses.replace(settings, name="", images=(name,)))
    assert run.directory.name == f"{classifier.name}-occlusion-images-normal"


def test_a_broken_dicom_file_is_left_out_where_that_is_asked_for(
    classifier: Path, phantoms: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(bytes(128) + b"DICM" + bytes(40))
    fine = str(next(phantoms.glob("test/NORMAL/*.png")))
    settings = Explain(
        classifier=str(classifier), images=(str(broken), fine), patch=32, stride=32,
        logs=str(tmp_path / "logs"),
    )  # fmt: skip
    with pytest.raises(UserError, match="--skip-unreadable"):
        explain_explain.explain(settings)
    assert not (tmp_path / "logs").exists()
    run = explain_explain.explain(dataclasses.replace(settings, skip_unreadable=True))
    assert run.metrics["images"] == 1


def test_mistakes_are_said_before_anything_is_written(
    classifier: Path, phantoms: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"

    def attempt(match: str, **changes: object) -> None:
        given = {"classifier": str(classifier), "data": str(phantoms), **changes}
        with pytest.raises(UserError, match=match):
            explain_explain.explain(Explain(logs=str(logs), **given))  # type: ignore[arg-type]
        assert not logs.exists()

    attempt("--patch must be between 1 and 64", patch=65)
    attempt("--stride must be at least 1", stride=0)
    attempt("larger than --patch 8", patch=8, stride=9)
    attempt("unknown class 'viral'.*normal, pneumonia, or predicted", target="viral")
    attempt("--batch-size must be at least 1", batch_size=0)
    attempt("--count must be at least 0", count=-1)
    attempt("--refine must be a share", refine=1.0)
    attempt("--images or --data", images=("a.png",))
    attempt("no such image", data="", images=("none.png",))
    attempt("'no good'", name="no good")
    attempt("not a run directory", classifier=str(tmp_path))
    served = tmp_path / "served"
    (served / "1").mkdir(parents=True)
    attempt("it is a SavedModel", classifier=str(served))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(classifier / "config.json", unfinished)
    attempt("not finished", classifier=str(unfinished))
    shutil.copy(classifier / "metrics.json", unfinished)
    attempt("lacks model.keras", classifier=str(unfinished))
    (unfinished / "model.keras").write_bytes(b"no model")
    attempt("is not a Keras model", classifier=str(unfinished))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    attempt(r"broken\.png", data="", images=(str(broken),))


def test_draws_are_even(classifier: Path) -> None:
    findings = ["normal"] * 40 + ["bacterial"] * 15 + ["viral"] * 3
    labels = np.array([0] * 40 + [1] * 18)

    def drawn(count: int, seed: int = 0) -> list[int]:
        return inputs.draw_rows(
            labels, findings, Explain(classifier="", count=count, seed=seed)
        ).tolist()

    rows = drawn(12)
    assert [findings[k] for k in rows] == ["normal"] * 6 + ["bacterial"] * 3 + ["viral"] * 3
    assert len(drawn(50)) == 50 == len(set(drawn(50)))  # although one finding runs out
    assert drawn(0) == list(range(58)) == drawn(99)
    assert drawn(12) == rows != drawn(12, seed=1)


# ---------------------------------------------------------------------- class activation maps


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cams, "SMOOTHGRAD_SAMPLES", 2)
    monkeypatch.setattr(cams, "SCORECAM_MAPS", 4)


@pytest.mark.parametrize("name", ["vgg16", "tiny"])
def test_cams_are_of_the_last_feature_maps_and_repeat(
    name: str, tiny_backbone: str, few_samples: None
) -> None:
    model = build_classifier(name, classes=2, image_size=64)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1)).astype(np.float32)
    images = np.repeat(images, 3, axis=3)
    layer = cams.last_feature_maps(model)
    assert layer.name == {"vgg16": "block5_conv3", "tiny": "conv2_relu"}[name]
    methods = cams.METHODS if name == "tiny" else ("gradcam++",)
    for method in methods:
        maps = cams.class_activation_maps(model, images, np.array([0, 1]), method)
        assert maps.shape == (2, 64, 64) and maps.dtype == np.float32
        assert maps.min() == 0 and maps.max() <= 1
        again = cams.class_activation_maps(model, images, np.array([0, 1]), method)
        np.testing.assert_array_equal(maps, again)
    with pytest.raises(ValueError, match="known: "):
        cams.class_activation_maps(model, images, np.array([0, 1]), "lime")


# ---------------------------------------------------------------------- faithfulness


@pytest.fixture(scope="module")
def bright_corner() -> keras.Model:
    """Probability of the second class: the brightness of the upper left quarter, and no more."""
    images = keras.Input((64, 64, 3), name="images")
    quarter = keras.layers.Cropping2D(((0, 32), (0, 32)))(images)
    mean = keras.layers.GlobalAveragePooling2D()(quarter / 255)[:, :1]
    logits = keras.layers.Dense(2, name="logits")(mean)
    scaled = keras.layers.Rescaling(1.0, name="temperature")(logits)
    model = keras.Model(images, keras.layers.Softmax(name="probabilities")(scaled))
    model.get_layer("logits").set_weights([np.array([[-9.0, 9.0]]), np.array([4.5, -4.5])])
    return model


def test_insertion_and_deletion_tell_a_true_map_from_a_false_one(
    bright_corner: keras.Model,
) -> None:
    images = np.zeros((1, 64, 64, 3), np.float32)
    images[:, :32, :32] = 255
    true = np.zeros((1, 64, 64), np.float32)
    true[:, :32, :32] = 1
    areas = faithfulness.insertion_deletion(bright_corner, batch_size=8)
    found = {
        name: [float(a[0]) for a in areas(images, maps, np.array([1]))]
        for name, maps in {
            "true": true,
            "false": 1 - true,
            "random": faithfulness.random_maps(1, 64),
        }.items()
    }
    assert found["true"][0] > found["random"][0] > found["false"][0]  # insertion
    assert found["true"][1] < found["random"][1] < found["false"][1]  # deletion
    assert found["true"][1] < 0.35 and found["false"][1] > 0.7


def test_ranks_are_a_permutation_with_equals_in_no_order() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[10, 20], heat[3, 4] = 2, 1
    rank = faithfulness.ranks(heat)
    assert sorted(rank.ravel()) == list(range(64 * 64))
    assert (rank[10, 20], rank[3, 4]) == (0, 1)
    below, above = rank[32:].mean(), rank[:32].mean()
    assert abs(below - above) < 100  # a sweep would be 2048 apart


def test_shuffled_weights_come_back_and_change_the_map(bright_corner: keras.Model) -> None:
    model = bright_corner
    before = [w.copy() for w in model.get_weights()]
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    grid = occluder.make_grid(64, 16, 16)
    function = occluder.compiled(occluder.make_occluder(model, grid))

    def explain() -> np.ndarray:
        plain, covered = function(images, np.zeros_like(images), occluder.all_places(grid))
        return occluder.heatmaps(grid, occluder.drop(plain, covered, [1], "probability")).numpy()

    class Stopped(Exception):
        pass

    with pytest.raises(Stopped), faithfulness.shuffled_weights(model, model.layers):
        raise Stopped
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    found = faithfulness.sensitivity_to_weights(model, explain, explain())
    assert set(found) == {"last_layer", "all_layers"}
    # A method that never looks at the weights is found out.
    constant = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    blind = faithfulness.sensitivity_to_weights(model, lambda: constant, constant)
    assert blind == {"last_layer": 1.0, "all_layers": 1.0}
    assert faithfulness.rank_correlation(constant, np.ones_like(constant)) == 0.0


def test_places() -> None:
    heat = np.zeros((64, 64), np.float32)
    heat[20:30, 40:50] = 1
    mask = np.zeros((64, 64), bool)
    mask[24:26, 44:46] = True
    assert metrics.hottest_pixel(heat) in {(24, 44), (25, 45), (24, 45), (25, 44)}
    assert metrics.pointing_hits(heat[None], mask[None])[0]
    away = np.roll(mask, 5, axis=0)
    hits = [metrics.pointing_hits(heat[None], away[None], tolerance=t)[0] for t in (3, 6)]
    assert hits == [False, True]
    heat[0] = -5  # what speaks against the target is no heat
    assert faithfulness.share_inside(heat, mask) == pytest.approx(4 / 100)
    assert np.isnan(faithfulness.share_inside(-np.abs(heat), mask))
    outside = faithfulness.outside_chest(64)
    assert outside[0].all() and outside[:, -1].all() and not outside[12:52, 12:52].any()
    assert outside[11, 11] and not outside[11, 12] and not outside[4, 32]
    np.testing.assert_array_equal(outside, outside[::-1, ::-1].T)


def test_a_refined_map_is_near_the_full_one_and_says_how_near(
    bright_corner: keras.Model,
) -> None:
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    covers = occluder.cover_images(images, "air", 16)
    grid = occluder.make_grid(64, 16, 4)
    function = occluder.compiled(occluder.make_occluder(bright_corner, grid))
    targets = np.array([0, 0])
    given = (function, grid, images, covers, targets, "logit")
    full = explain_maps.full_maps(*given)
    for share, error in ((0.999, 1e-4), (0.3, 0.35)):
        maps, told = explain_maps.refined_maps(*given, share)
        found = np.abs(maps - full).max((1, 2)) / np.abs(full).max((1, 2))
        assert told["largest_error"] == pytest.approx(found.mean(), abs=1e-6)
        assert found.max() < error
    assert told["computed_share"] < 0.5 and told["images"] == 2


# ---------------------------------------------------------------------- the whole job


def test_occlusion_of_a_bfloat16_file_is_that_of_the_float32_one(
    tiny_backbone: str, phantoms: Path, tmp_path: Path
) -> None:
    exact = random_classifier(tiny_backbone, 64, classes=2)
    short = build_classifier(tiny_backbone, classes=2, image_size=64, precision="mixed_bfloat16")
    short.set_weights(exact.get_weights())
    short = calibrated(short, 1 / exact.get_layer("temperature").scale)
    write_run(tmp_path / "tiny", exact, str(phantoms))
    maps = {}
    for kind, model in (("float32", exact), ("bfloat16", short)):
        keras.saving.save_model(model, tmp_path / "tiny" / "model.keras")
        classifier = inputs.open_classifier(str(tmp_path / "tiny"))
        assert {x.compute_dtype for x in classifier.model.layers} == {"float32"}
        grid = occluder.make_grid(64, 16, 8)
        explain = explain_maps.map_function(
            "occlusion", classifier, grid, Explain(classifier="", fill="gray", drop="logit")
        )
        images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
        maps[kind] = explain(images, np.array([0, 1]))[0]
    np.testing.assert_allclose(maps["bfloat16"], maps["float32"], atol=1e-4)
    assert np.abs(maps["float32"]).max() > 1e-3


def test_the_table_has_every_method(classifier: Path, tmp_path: Path, few_samples: None) -> None:
    run = explain_explain.explain(
        Explain(
            classifier=str(classifier), split="val", count=2, method="all",
            logs=str(tmp_path), patch=24, stride=8, refine=0.2,
        )
    )  # fmt: skip
    assert run.directory.name == "tiny-all-val"
    table = json.loads((run.directory / "metrics.json").read_text())["methods"]
    assert list(table) == ["occlusion", "gradcam++", "scorecam", "smoothgrad", "random"]
    for method, row in table.items():
        assert {"insertion", "deletion", "outside_chest", "phantoms"} <= set(row)
        assert ("shuffled_all_layers" in row) == (method != "random")
    assert table["occlusion"]["refinement/computed_share"] < 0.6
    names = {p.name.rsplit("-", 1)[1] for p in (run.directory / "heatmaps").iterdir()}
    assert names == {"occlusion.png", "gradcampp.png", "scorecam.png", "smoothgrad.png"}


def test_every_radiograph_counts_alike_in_the_mean_heatmap() -> None:
    from cxr_tf import figures

    maps = np.zeros((2, 8, 8), np.float32)
    maps[0, 1, 1], maps[1, 6, 6] = 1e-4, 0.5  # one all but certain, one unsure
    figure = figures.mean_heatmaps(
        np.zeros((2, 8, 8, 1), np.uint8),
        [("occlusion", maps)],
        np.zeros(2, int),
        ("normal",),
        np.zeros((8, 8), bool),
    )
    drawn = figure.axes[0].images[-1].get_array()
    assert drawn[1, 1] == drawn[6, 6] == 0.5


def test_a_dollar_in_a_file_s_name_is_no_formula() -> None:
    from cxr_tf import figures

    image, heat = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8))
    figure = figures.heatmap_overlay(image, heat, "scan$_1_2$.png", "probability")
    figure.canvas.draw()  # a formula would be read, and refused, only now
    assert figure.get_suptitle() == "scan$_1_2$.png"


def test_the_pointing_game_is_told_with_and_without_its_tolerance() -> None:
    from types import SimpleNamespace

    from cxr_tf.explain import maps as explain_maps
    from cxr_tf.explain import measures
    from cxr_tf.models.occlusion import occluder

    maps, masks = np.zeros((3, 64, 64)), np.zeros((3, 64, 64), bool)
    maps[:, 30, 30] = 1.0
    masks[0, 28:33, 28:33] = True  # hit
    masks[1, 28:33, 34:39] = True  # 4 pixels beside
    masks[2, 28:33, 50:55] = True  # 20 pixels beside
    labels = np.ones(3, int)
    row = measures.measure(
        "random",
        explain_maps.Explained("random", maps, 0.0, {}),
        SimpleNamespace(labels=labels, masks=masks),
        SimpleNamespace(size=64, classes=("normal", "pneumonia")),
        labels,
        labels,
        occluder.make_grid(64),  # a stride of 5 pixels
        Explain(classifier=""),
    )
    assert row["phantoms"] == 3
    assert row["pointing_game"] == pytest.approx(2 / 3)
    assert row["pointing_game_exact"] == pytest.approx(1 / 3)


def test_a_small_folder_without_splits_is_that_of_the_training(
    classifier: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    unsplit = tmp_path / "unsplit"
    for path in phantoms.glob("t*/*/*.png"):
        (unsplit / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, unsplit / path.parent.name)
    model = keras.saving.load_model(classifier / "model.keras", compile=False)
    write_run(tmp_path / "run", model, str(unsplit))
    shown = inputs.load_radiographs(
        Explain(classifier="", data=str(unsplit), count=100),
        inputs.open_classifier(str(tmp_path / "run")),
    )
    assert "may have seen" not in caplog.text
    trained_on = open_catalog(str(unsplit))
    expected = trained_on.take(trained_on.rows("test")).paths
    assert sorted(shown.catalog.paths) == sorted(expected)


def test_images_that_have_changed_since_the_training_are_told(
    classifier: Path, phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    loaded = inputs.open_classifier(str(classifier))
    inputs.load_radiographs(Explain(classifier="", data=str(phantoms), count=2), loaded)
    assert "may have seen" not in caplog.text
    changed = tmp_path / "phantoms"
    shutil.copytree(phantoms, changed)
    next(changed.glob("train/*/*.png")).unlink()
    inputs.load_radiographs(Explain(classifier="", data=str(changed), count=2), loaded)
    assert "what is test here it may have seen" in caplog.text
