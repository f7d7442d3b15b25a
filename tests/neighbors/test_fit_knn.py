"""A complete KNN run: its choice, metrics and export, and how it resumes."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import skops.io
from fitted_knn import Fitted

from cxr_tf.config import FitKnn
from cxr_tf.errors import UserError


def test_run_has_metrics_figures_and_settings(fitted: Fitted) -> None:
    metrics = fitted.metrics
    assert {"val", "test", "classifier", "model", "grid", "projection"} <= set(metrics)
    for table in (metrics["test"], metrics["classifier"]["test"]):
        assert table["images"] == metrics["test"]["images"]
        assert len(table["ci95"]["auroc"]) == 2
    for name in (
        "grid",
        "tsne",
        "neighbors",
        "roc-test",
        "confusion-test",
        "precision_recall-test",
    ):
        assert (fitted.run / "figures" / f"{name}.png").stat().st_size > 5000
    config = json.loads((fitted.run / "config.json").read_text())
    # Left to the classifier, and recorded as resolved.
    assert config["settings"]["seed"] == 3
    assert Path(config["settings"]["data"]).is_dir()


def test_evaluating_the_export_gives_the_same_metrics(fitted: Fitted, tmp_path: Path) -> None:
    from cxr_tf.config import Evaluate
    from cxr_tf.evaluation.evaluate import evaluate

    data = json.loads((fitted.run / "config.json").read_text())["settings"]["data"]
    again = evaluate(
        Evaluate(model=str(fitted.model), data=data, logs=str(tmp_path), bootstrap_samples=5)
    ).metrics["test"]
    for metric in ("auroc", "accuracy", "f1", "images"):
        assert again[metric] == pytest.approx(fitted.metrics["test"][metric], abs=1e-5)


def test_classifier_metrics_match_the_classifier_run(fitted: Fitted) -> None:
    own = json.loads((fitted.classifier / "metrics.json").read_text())["test"]
    beside = fitted.metrics["classifier"]["test"]
    for metric in ("auroc", "accuracy", "loss"):
        assert beside[metric] == pytest.approx(own[metric], abs=1e-5)


def test_best_candidate_is_chosen_and_its_pipeline_has_its_score(fitted: Fitted) -> None:
    from cxr_tf.neighbors.selection import balanced_accuracy
    from cxr_tf.neighbors.storage import load_knn

    metrics = fitted.metrics
    chosen = metrics["model"]

    def score(cell: dict) -> float:
        return (cell["balanced_accuracy"] + cell["stressed_balanced_accuracy"]) / 2

    assert score(chosen) == pytest.approx(max(score(c) for c in metrics["grid"]))
    knn, manifest = load_knn(str(fitted.model))
    stored = fitted.embeddings()
    val = stored["splits"] == "val"
    labels = stored["labels"][val]
    for values, key in (
        (stored["embeddings"][val], "balanced_accuracy"),
        (stored["stressed"], "stressed_balanced_accuracy"),
    ):
        assert balanced_accuracy(labels, knn.predict_proba(values)) == pytest.approx(chosen[key])
    assert manifest["k"] == knn[-1].n_neighbors == chosen["k"]
    assert chosen["k"] % 2 == 1


def test_exported_novelty_matches_the_predictions(fitted: Fitted) -> None:
    from cxr_tf.serving.loading import load_served

    with (fitted.run / "predictions-test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    import tensorflow as tf

    served = load_served(str(fitted.model))
    out = served.signature("serving_default")(
        image_bytes=tf.constant(served.decode([r["path"] for r in rows]))
    )
    np.testing.assert_allclose(
        out["novelty"].numpy(), [float(r["novelty"]) for r in rows], rtol=1e-3
    )
    # On validation one in a hundred is above 1, by definition.
    assert fitted.metrics["val"]["novel"] <= 0.1


def test_resumed_export_reuses_the_embeddings(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf import runs
    from cxr_tf.neighbors import embeddings as neighbors_embeddings
    from cxr_tf.neighbors import fit_knn as neighbors_fit_knn

    # Beside the finished run, whose embeddings serve this one too; from the SavedModel's folder.
    settings = dataclasses.replace(
        fitted.settings,
        classifier=str(fitted.model.parent / "tiny"),
        data=json.loads((fitted.run / "config.json").read_text())["settings"]["data"],
        seed=None,  # that of the classifier, from its SavedModel
        name="again",
        saved_models=str(tmp_path),
    )

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(neighbors_embeddings, "embed_files", forbidden)
    monkeypatch.setattr(neighbors_embeddings, "embed_stressed", forbidden)
    with monkeypatch.context() as patched:
        patched.setattr(skops.io, "dump", interrupted)  # during the export
        with pytest.raises(KeyboardInterrupt):
            neighbors_fit_knn.fit_knn(settings)
    assert not (tmp_path / "again").exists()
    assert not (fitted.run.parent / "again" / "metrics.json").exists()
    with pytest.raises(UserError, match="--resume"):
        neighbors_fit_knn.fit_knn(settings)
    resumed = dataclasses.replace(settings, resume=True)
    with monkeypatch.context() as patched:  # between the export and the end
        patched.setattr(runs.Run, "write_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            neighbors_fit_knn.fit_knn(resumed)
    run = neighbors_fit_knn.fit_knn(resumed)
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["1"]
    assert (tmp_path / "again" / "1" / "knn.pkl").exists()
    assert run.metrics["served_agreement"] == fitted.metrics["served_agreement"]
    # Same seed, same numbers, and those from before training found beside.
    again, first = run.metrics, fitted.metrics
    assert again["test"] == first["test"]
    assert again["projection"] == first["projection"]
    assert {"before", "after"} <= set(again["projection"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "nowhere"}, "no such model"),
        ({"name": "a/b"}, "folder"),
        ({"batch_size": 0}, "batch-size"),
        ({"data": "nowhere"}, "no such folder"),
    ],
)
def test_user_error_writes_nothing(
    fitted: Fitted, tmp_path: Path, change: dict, message: str
) -> None:
    from cxr_tf.neighbors.fit_knn import fit_knn

    settings = dataclasses.replace(
        fitted.settings,
        **{"name": "x", "logs": str(tmp_path / "l"), "saved_models": str(tmp_path / "s"), **change},
    )
    with pytest.raises(UserError, match=message):
        fit_knn(settings)
    assert not list(tmp_path.iterdir())


def test_saved_model_without_its_run_needs_data(fitted: Fitted) -> None:
    from cxr_tf.neighbors.embeddings import open_classifier
    from cxr_tf.neighbors.fit_knn import resolve

    classifier = open_classifier(str(fitted.model.parent / "tiny"))
    with pytest.raises(UserError, match="--data"):
        resolve(FitKnn(classifier="", name="x"), classifier)
    with pytest.raises(UserError, match="not a classifier"):
        open_classifier(str(fitted.model))


def test_missing_class_is_reported_before_any_work(phantoms: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    from cxr_tf.neighbors.fit_knn import fit_knn
    from cxr_tf.serving.store import versions

    card = {"kind": "classifier", "task": "labels", "classes": ["a", "b", "c"], "image_size": 64}
    model = versions.write_version(
        tmp_path / "models" / "abc", lambda f: tf.saved_model.save(tf.Module(), f), card=card
    )
    images = sorted(phantoms.glob("*/*/*.png"))[:40]
    rows = [f"{path},{'ac'[n % 2]}" for n, path in enumerate(images)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,label", *rows]))
    settings = FitKnn(classifier=str(model), data=str(listed), logs=str(tmp_path / "logs"))
    with pytest.raises(UserError, match="no 'b' image in the train split"):
        fit_knn(settings)
    assert not (tmp_path / "logs").exists()


def test_exports_record_digests_of_their_training_files(fitted: Fitted) -> None:
    from cxr_tf.data.loading import open_catalog
    from cxr_tf.serving import loading

    config = json.loads((fitted.classifier / "config.json").read_text())["settings"]
    rows = open_catalog(config["data"], seed=config["seed"]).radiographs
    expected = {r.digest for r in rows if r.split in ("train", "val")}
    classifier = json.loads((fitted.classifier / "metrics.json").read_text())["model"]
    for model in (classifier["saved_model"], str(fitted.model)):
        assert loading.load_served(model).training_digests() == expected
