"""Tests of explain.py: its files, its agreement with the SavedModel, and refused flags."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier_run import THRESHOLD

from cxr_tf.config import Explain
from cxr_tf.errors import UserError
from cxr_tf.explain import explain as explain_explain
from cxr_tf.runs import Run
from cxr_tf.serving import export, loading


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


def test_run_holds_heatmaps_figures_and_metrics(explained: tuple[Run, Explain]) -> None:
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


def test_served_heatmaps_equal_those_of_the_script(
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
    labels = [stored["classes"][k] for k in stored["predicted"]]
    assert [x.decode() for x in out["label"].numpy()] == labels
    assert np.abs(stored["heatmaps"]).max() > 1e-3  # otherwise equality proves nothing
    # The result does not depend on the batch.
    alone = served.signature("occlusion")(image_bytes=tf.constant(contents[2:3]))
    np.testing.assert_allclose(alone["heatmap"][0], out["heatmap"][2], atol=1e-5)


def test_unlabelled_images_are_explained_for_a_given_target(
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
    assert run.metrics["correct"] is None  # no labels
    # The default name names the flags; a file may be given relative to its folder.
    monkeypatch.chdir(Path(stored["paths"][0]).parent)
    name = Path(stored["paths"][0]).name
    run = explain_explain.explain(dataclasses.replace(settings, name="", images=(name,)))
    assert run.directory.name == f"{classifier.name}-occlusion-images-normal"


def test_broken_dicom_file_is_skipped_on_request(
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


def test_mistakes_are_reported_before_anything_is_written(
    classifier: Path, phantoms: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"

    def attempt(match: str, **changes: object) -> None:
        flags = {"classifier": str(classifier), "data": str(phantoms), **changes}
        with pytest.raises(UserError, match=match):
            explain_explain.explain(Explain(logs=str(logs), **flags))  # type: ignore[arg-type]
        assert not logs.exists()

    attempt("--patch must be between 1 and 64", patch=65)
    attempt("--stride must be at least 1", stride=0)
    attempt("larger than --patch 8", patch=8, stride=9)
    attempt("unknown class 'viral'.*normal, pneumonia, or predicted", target="viral")
    attempt("--batch-size must be at least 1", batch_size=0)
    attempt("--count must be at least 0", count=-1)
    attempt("--refine must be a fraction", refine=1.0)
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


def test_table_has_every_method(classifier: Path, tmp_path: Path) -> None:
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
