"""Nearest neighbours: selection, storage, export and their agreement."""

import csv
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from openTSNE import TSNE

from cxr_tf.config import FitKnn, TrainClassifier
from cxr_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished KNN run, and the classifier's run it was made from."""

    settings: FitKnn
    classifier: Path
    run: Path
    model: Path

    @property
    def metrics(self) -> dict:
        return json.loads((self.run / "metrics.json").read_text())

    def embeddings(self) -> dict[str, np.ndarray]:
        with np.load(self.run / "embeddings.npz") as stored:
            return dict(stored)


@pytest.fixture(scope="module")
def fitted(phantoms: Path, tiny_backbone: str, tmp_path_factory) -> Fitted:
    """A classifier of two epochs, and neighbours in its embedding."""
    from cxr_tf.classification.train_classifier import train_classifier
    from cxr_tf.neighbors.fit_knn import fit_knn

    root = tmp_path_factory.mktemp("knn")
    # One training image twice: the copy must not be a neighbour of its own.
    data = root / "phantoms"
    shutil.copytree(phantoms, data)
    original = min((data / "train" / "NORMAL").iterdir())
    shutil.copy(original, original.with_name(f"{original.stem}_copy{original.suffix}"))
    where = {"logs": str(root / "logs"), "saved_models": str(root / "saved_models")}
    classifier = train_classifier(
        TrainClassifier(
            data=str(data), backbone=tiny_backbone, weights="none", image_size=64, batch_size=16,
            epochs=2, precision="float32", bootstrap_samples=5, name="tiny", seed=3, **where,
        )
    )  # fmt: skip
    settings = FitKnn(
        classifier=str(classifier.directory),
        batch_size=16,
        bootstrap_samples=20,
        name="knn",
        **where,
    )
    run = fit_knn(settings)
    return Fitted(settings, classifier.directory, run.directory, root / "saved_models" / "knn")


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


def test_embeddings_match_the_classifier_in_split_order(fitted: Fitted) -> None:
    import tensorflow as tf

    from cxr_tf.serving.loading import load_served

    stored = fitted.embeddings()
    assert list(dict.fromkeys(stored["splits"])) == ["train", "val", "test"]
    served = load_served(str(fitted.model.parent / "tiny"))
    paths = [str(p) for p in stored["paths"][-4:]]
    out = served.signature("embed")(image_bytes=tf.constant(served.decode(paths)))
    np.testing.assert_allclose(out["embedding"], stored["embeddings"][-4:], rtol=1e-5, atol=1e-5)


def test_duplicate_training_image_is_not_indexed(fitted: Fitted) -> None:
    stored, (indexed, _) = fitted.embeddings(), fitted.metrics["model"]["index"]
    train = stored["splits"] == "train"
    assert indexed == train.sum() - 1
    assert len(set(stored["digests"][:indexed])) == indexed


def test_saved_model_and_pickle_agree_on_every_test_image(fitted: Fitted) -> None:
    import tensorflow as tf

    from cxr_tf.neighbors.selection import before_knn
    from cxr_tf.neighbors.storage import load_knn
    from cxr_tf.serving.loading import load_served

    stored = fitted.embeddings()
    test = stored["splits"] == "test"
    knn, manifest = load_knn(str(fitted.model), embedding_width=stored["embeddings"].shape[1])
    served = load_served(str(fitted.model))
    encoded = tf.constant(served.decode([str(p) for p in stored["paths"][test]]))
    out = {
        k: v.numpy() for k, v in served.signature("serving_default")(image_bytes=encoded).items()
    }
    shares = knn.predict_proba(stored["embeddings"][test])
    np.testing.assert_allclose(out["probabilities"], shares, atol=1e-4)
    labels = [manifest["classes"][i] for i in knn.predict(stored["embeddings"][test])]
    assert [x.decode() for x in out["label"]] == labels
    distances, rows = knn[-1].kneighbors(before_knn(knn, stored["embeddings"][test]))
    np.testing.assert_allclose(out["neighbor_distances"], distances, rtol=1e-3, atol=1e-5)
    assert (np.diff(out["neighbor_distances"], axis=1) >= 0).all()
    named = np.array([[p.decode() for p in row] for row in out["neighbor_paths"]])
    assert (named == stored["paths"][rows]).mean() > 0.99
    # The very files are there to be looked at, and none of them is a test image.
    assert all(Path(p).exists() for p in named[:, 0])
    assert not set(named.ravel()) & set(stored["paths"][test])
    assert fitted.metrics["served_agreement"]["equal"] == test.sum()


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


def test_pickle_loads_with_scikit_learn_only(fitted: Fitted, tmp_path: Path) -> None:
    version = fitted.model / "1"
    program = (
        "import pickle, sys, numpy as np\n"
        f"knn = pickle.load(open({str(version / 'knn.pkl')!r}, 'rb'))\n"
        f"width = {fitted.metrics['model']['embedding_width']}\n"
        "x = np.random.default_rng(0).random((5, width), np.float32); before = x.copy()\n"
        "shares = knn.predict_proba(x)\n"
        "assert shares.shape == (5, 2) and (x == before).all()\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in "
        "('tensorflow', 'keras', 'cxr_tf', 'skops')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_skops_and_pickle_predict_the_same(fitted: Fitted) -> None:
    from cxr_tf.neighbors.storage import load_knn

    values = fitted.embeddings()["embeddings"]
    pickled, _ = load_knn(str(fitted.model))
    plain, _ = load_knn(str(fitted.model), without_code=True)
    np.testing.assert_array_equal(plain.predict_proba(values), pickled.predict_proba(values))


class Payload:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def test_tampered_pickle_is_refused_before_it_runs(fitted: Fitted, tmp_path: Path) -> None:
    from cxr_tf.neighbors.storage import load_knn

    version = tmp_path / "1"
    shutil.copytree(fitted.model / "1", version, ignore=shutil.ignore_patterns("variables"))
    trace = tmp_path / "it-ran"
    (version / "knn.pkl").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match="sha256"):
        load_knn(str(version))
    assert not trace.exists()
    load_knn(str(version), without_code=True)
    (version / "knn.skops").write_bytes((version / "knn.skops").read_bytes()[:-1])
    with pytest.raises(UserError, match="sha256"):
        load_knn(str(version), without_code=True)


@pytest.mark.filterwarnings("ignore:.*was fitted with scikit-learn")
def test_damaged_manifest_is_a_user_error(fitted: Fitted, tmp_path: Path) -> None:
    from benchmarks.faults import wrong_records
    from cxr_tf.neighbors.storage import load_knn

    version = tmp_path / "1"
    shutil.copytree(fitted.model / "1", version, ignore=shutil.ignore_patterns("variables"))
    manifest = json.loads((version / "knn.json").read_text())
    whole = json.dumps(manifest)
    texts = [json.dumps(changed) for _, changed in wrong_records(manifest)]
    refused = 0
    for text in [*texts, *(whole[:cut] for cut in range(0, len(whole), 40))]:
        (version / "knn.json").write_text(text)
        try:
            load_knn(str(version))
        except UserError as error:
            refused += "damaged" in str(error) or "sha256" in str(error)
    assert refused > len(whole) // 40  # all that were cut off, and changes of what is read


def test_damaged_skops_file_with_its_checksum_is_a_user_error(
    fitted: Fitted, tmp_path: Path
) -> None:
    from cxr_tf.files import digest_files
    from cxr_tf.neighbors.storage import load_knn

    version = tmp_path / "1"
    shutil.copytree(fitted.model / "1", version, ignore=shutil.ignore_patterns("variables"))
    manifest = json.loads((version / "knn.json").read_text())
    for name in ("knn.skops", "knn.pkl"):
        (version / name).write_bytes((version / name).read_bytes()[:100])
        manifest["sha256"][name] = digest_files(version / name, algorithm="sha256")
    (version / "knn.json").write_text(json.dumps(manifest))
    for without_code in (True, False):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_knn(str(version), without_code=without_code)


def test_wrong_width_is_refused_and_other_scikit_learn_warns(
    fitted: Fitted, tmp_path: Path
) -> None:
    from cxr_tf.neighbors.storage import load_knn

    with pytest.raises(UserError, match="width"):
        load_knn(str(fitted.model), embedding_width=7)
    version = tmp_path / "1"
    shutil.copytree(fitted.model / "1", version, ignore=shutil.ignore_patterns("variables"))
    manifest = json.loads((version / "knn.json").read_text())
    (version / "knn.json").write_text(json.dumps({**manifest, "scikit-learn": "1.3.0"}))
    with pytest.warns(UserWarning, match=r"scikit-learn 1\.3\.0"):
        load_knn(str(version))


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_missing_knn_model_is_a_user_error(folder: str, tmp_path: Path) -> None:
    from cxr_tf.neighbors.storage import load_knn

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"knn\.json"):
        load_knn(str(tmp_path / folder))


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
        patched.setattr(neighbors_fit_knn, "check_agreement", interrupted)
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


def test_embeddings_of_other_models_or_images_are_not_reused(fitted: Fitted) -> None:
    from cxr_tf.neighbors.embeddings import find_stored

    stored = fitted.embeddings()
    model, digests, splits = str(stored["model"]), stored["digests"], stored["splits"]
    file = fitted.run.parent / "new" / "embeddings.npz"
    assert find_stored(file, model, digests, splits) is not None
    swapped = digests.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert find_stored(file, "another", digests, splits) is None
    assert find_stored(file, model, swapped, splits) is None
    assert find_stored(file, model, digests[:-1], splits[:-1]) is None


def test_export_that_disagrees_with_the_pipeline_is_refused(fitted: Fitted) -> None:
    from cxr_tf.neighbors.storage import check_agreement, load_knn

    stored = fitted.embeddings()
    test = stored["splits"] == "test"
    knn, _ = load_knn(str(fitted.model))
    paths = [str(p) for p in stored["paths"][test]]
    # The embeddings of the wrong images, as a mixed-up preprocessing would give.
    with pytest.raises(RuntimeError, match="disagrees"):
        check_agreement(fitted.model / "1", knn, stored["embeddings"][test][::-1], paths, 16)


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


def test_sprite_order_matches_the_projector_metadata(fitted: Fitted) -> None:
    """The rows are in another order than the files: a copy goes last within train."""
    from PIL import Image

    from cxr_tf.data.decoding import load_images
    from cxr_tf.neighbors.projection import sprite
    from cxr_tf.neighbors.results import THUMBNAIL

    with (fitted.run / "projector" / "metadata.tsv").open(newline="") as lines:
        paths = [row["path"] for row in csv.DictReader(lines, delimiter="\t")]
    expected, _ = load_images(paths, THUMBNAIL)
    with Image.open(fitted.run / "projector" / "sprite.png") as shown:
        np.testing.assert_array_equal(np.asarray(shown), sprite(expected))


def test_exports_record_digests_of_their_training_files(fitted: Fitted) -> None:
    from cxr_tf.data.loading import open_catalog
    from cxr_tf.serving import loading

    config = json.loads((fitted.classifier / "config.json").read_text())["settings"]
    rows = open_catalog(config["data"], seed=config["seed"]).radiographs
    expected = {r.digest for r in rows if r.split in ("train", "val")}
    classifier = json.loads((fitted.classifier / "metrics.json").read_text())["model"]
    for model in (classifier["saved_model"], str(fitted.model)):
        assert loading.load_served(model).training_digests() == expected


# ------------------------------------------------------------------ without a run


def test_tsne_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More points than openTSNE searches exactly by itself."""
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


def test_missing_class_is_reported_before_any_work(phantoms: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    from cxr_tf.neighbors.fit_knn import fit_knn
    from cxr_tf.serving import versions

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


@pytest.mark.parametrize("block", [7, 64])
def test_exported_search_is_exact_for_any_block_size(block: int) -> None:
    import tensorflow as tf

    from cxr_tf.serving.export import nearest_rows

    rng = np.random.default_rng(0)
    # Far from the origin, where float32 would lose the distances.
    index = (rng.normal(size=(50, 6)) + 1000).astype(np.float32)
    queries = (rng.normal(size=(9, 6)) + 1000).astype(np.float32)
    distances, rows = nearest_rows(tf.constant(queries), tf.Variable(index), 5, block=block)
    truth = np.linalg.norm(queries[:, None].astype(float) - index[None], axis=2)
    np.testing.assert_array_equal(rows, np.argsort(truth, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(distances, np.sort(truth, axis=1)[:, :5], rtol=1e-6)


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_vote_matches_scikit_learn(weights: str) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    from cxr_tf.neighbors.selection import vote

    rng = np.random.default_rng(1)
    index, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    # The last query is a point of the index: at no distance, it alone has the vote.
    queries = np.concatenate([rng.normal(size=(8, 3)), index[:1]])
    longest = KNeighborsClassifier(9, algorithm="kd_tree").fit(index, labels)
    distances, rows = longest.kneighbors(queries)
    for k in (1, 4, 9):
        knn = KNeighborsClassifier(k, weights=weights, algorithm="kd_tree").fit(index, labels)
        shares = vote(distances[:, :k], labels[rows[:, :k]], weights, 3)
        np.testing.assert_allclose(shares, knn.predict_proba(queries), atol=1e-12)


def stored_embeddings(folder: Path, rows: int, width: int):
    """Embeddings of no images: half the rows are trained on."""
    from cxr_tf.data.catalog import Catalog, Radiograph
    from cxr_tf.neighbors.embeddings import Embeddings

    rng = np.random.default_rng(0)
    values = rng.random((rows, width), np.float32)
    np.savez(folder / "e.npz", embeddings=values)
    splits = ["train"] * (rows // 2) + ["val"] * (rows // 4) + ["test"] * (rows - rows * 3 // 4)
    radiographs = tuple(Radiograph("", "normal", "", s, "") for s in splits)
    catalog = Catalog("none", radiographs, findings=("normal",))
    labels = rng.integers(0, 2, rows)
    return Embeddings(
        folder / "e.npz", catalog, labels, rows // 2, values[:8].copy(), np.zeros((0, 2))
    )


def test_cosine_ranking_matches_scikit_learn(tmp_path: Path) -> None:
    from sklearn.neighbors import NearestNeighbors

    from cxr_tf.neighbors.selection import fit_steps

    embeddings = stored_embeddings(tmp_path, 200, 12)
    raw = embeddings.read()
    _, values = fit_steps("as is", "cosine", embeddings)
    near = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(values[:100])
    cosine = NearestNeighbors(n_neighbors=7, algorithm="brute", metric="cosine").fit(raw[:100])
    distances, rows = near.kneighbors(values[150:])
    expected, expected_rows = cosine.kneighbors(raw[150:])
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances**2 / 2, expected, atol=1e-5)


@pytest.mark.parametrize("representation", ["as is", "standardised", "PCA"])
def test_fit_steps_keeps_one_copy_of_the_embeddings(representation: str, tmp_path: Path) -> None:
    from sklearn.pipeline import Pipeline

    from cxr_tf.neighbors.selection import fit_steps

    embeddings = stored_embeddings(tmp_path, 20_000, 128)
    size = 20_000 * 128 * 4
    tracemalloc.start()
    steps, values = fit_steps(representation, "euclidean", embeddings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # PCA's coordinates, half as wide as the embeddings here, and a float64 part of 4096 rows.
    allowed = {"as is": 1.1, "standardised": 2.0, "PCA": 2.0}[representation]
    assert peak < allowed * size
    if steps:
        again = Pipeline(steps).transform(embeddings.read()[:50])
        np.testing.assert_allclose(again, values[:50], rtol=1e-3, atol=1e-4)


def test_novelty_exceeds_one_for_data_unlike_training(tmp_path: Path) -> None:
    from cxr_tf.neighbors.fit_knn import NOVELTY_QUANTILE
    from cxr_tf.neighbors.results import novelty_of
    from cxr_tf.neighbors.selection import Candidate, before_knn, fit_pipeline

    embeddings = stored_embeddings(tmp_path, 800, 12)
    knn = fit_pipeline(embeddings, Candidate("standardised", "euclidean", "uniform", 5, 0, 0, 0))
    values = embeddings.read()

    def distances(rows: np.ndarray) -> np.ndarray:
        return knn[-1].kneighbors(before_knn(knn, rows))[0]

    val = distances(values[embeddings.rows("val")])
    limit = float(np.quantile(val[:, -1], NOVELTY_QUANTILE))
    assert 0 < np.mean(novelty_of(val, limit) > 1) <= 0.015
    assert (novelty_of(distances(values[:50] + 2), limit) > 1).all()


def test_large_index_is_searched_in_pca_coordinates_only() -> None:
    from cxr_tf.neighbors.selection import REPRESENTATIONS, representations

    assert representations(5_000, 2048) == REPRESENTATIONS
    assert representations(100_000, 2048) == ("PCA",)


def test_batches_never_hold_a_single_image() -> None:
    from cxr_tf.neighbors.embeddings import batches

    for count, size in ((65, 32), (64, 32), (33, 32), (7, 3), (2, 1)):
        parts = [range(count)[b] for b in batches(count, size)]
        assert [i for b in parts for i in b] == list(range(count))
        assert size == 1 or all(len(b) > 1 for b in parts)
