"""Tests of exported models: they reproduce the measured results, and are written atomically."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf.config import TrainClassifier
from cxr_tf.errors import UserError
from cxr_tf.files import write_json
from cxr_tf.runs import Run
from cxr_tf.serving import export as serving_export
from cxr_tf.serving import loading
from cxr_tf.serving.store import model_config, versions

CLIENT = """
import json, sys
import tensorflow as tf

folder, out, *paths = sys.argv[1:]
loaded = tf.saved_model.load(folder)
contents = tf.constant([open(p, "rb").read() for p in paths])
served = loaded.signatures["serving_default"](image_bytes=contents)
embedded = loaded.signatures["embed"](image_bytes=contents)
signatures = {
    name: {
        side: {k: [v.dtype.name, v.shape.as_list()] for k, v in specs.items()}
        for side, specs in (
            ("in", f.structured_input_signature[1]),
            ("out", f.structured_outputs),
        )
    }
    for name, f in loaded.signatures.items()
}
answer = {
    "probabilities": served["probabilities"].numpy().tolist(),
    "label": [x.decode() for x in served["label"].numpy()],
    "classes": [[c.decode() for c in row] for row in served["classes"].numpy()],
    "embedding": embedded["embedding"].shape.as_list(),
    "signatures": signatures,
    "imported": [m for m in ("keras", "cxr_tf") if m in sys.modules],
}
json.dump(answer, open(out, "w"))
"""


@pytest.fixture(scope="module")
def answer(finished: TrainClassifier, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Predictions on val and test from a process that imports only TensorFlow."""
    out = tmp_path_factory.mktemp("client") / "answer.json"
    folder = Path(finished.saved_models) / finished.name / "1"
    paths = [r["path"] for r in predictions(finished)]
    command = [sys.executable, "-c", CLIENT, str(folder), str(out), *paths]
    subprocess.run(command, check=True, cwd=out.parent, capture_output=True)
    return json.loads(out.read_text())


def predictions(finished: TrainClassifier) -> list[dict[str, str]]:
    rows = []
    for split in ("val", "test"):
        path = Path(finished.logs) / "classifier" / finished.name / f"predictions-{split}.csv"
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def test_served_predictions_equal_the_measured_ones(
    finished: TrainClassifier, answer: dict
) -> None:
    rows = predictions(finished)
    measured = np.array([[float(r["normal"]), float(r["pneumonia"])] for r in rows])
    assert np.ptp(measured, axis=0).min() > 0.05, "otherwise all images look alike"
    np.testing.assert_allclose(answer["probabilities"], measured, atol=1e-4)
    # Also for the images whose score is the threshold (Youden's point).
    assert answer["label"] == [r["predicted"] for r in rows]
    assert answer["classes"] == [["normal", "pneumonia"]] * len(rows)
    assert answer["embedding"] == [len(rows), 512]


def test_signatures_have_the_documented_inputs_and_outputs(answer: dict) -> None:
    out = {
        "probabilities": ["float32", [None, 2]],
        "classes": ["string", [None, 2]],
        "label": ["string", [None]],
        "prediction_set": ["bool", [None, 2]],
        "novelty": ["float32", [None]],
        "is_novel": ["bool", [None]],
    }
    contents = {"image_bytes": ["string", [None]]}
    signatures = answer["signatures"]
    assert signatures["serving_default"] == {"in": contents, "out": out}
    assert signatures["tensor"] == {"in": {"images": ["float32", [None, 64, 64, 3]]}, "out": out}
    embedding = {"embedding": ["float32", [None, 512]]}
    assert signatures["embed"] == {"in": contents, "out": embedding}
    assert signatures["predict_and_embed"] == {"in": contents, "out": {**out, **embedding}}


def test_client_needs_only_tensorflow(answer: dict) -> None:
    assert "cxr_tf" not in answer["imported"]


def test_graph_has_no_python_functions_and_no_hash_tables(finished: TrainClassifier) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    folder = Path(finished.saved_models) / finished.name / "1"
    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    ops = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert "DecodeImage" in ops
    assert not {op for op in ops if "PyFunc" in op or "HashTable" in op or "Lookup" in op}
    # Nothing is compiled for one machine, and nothing is random.
    assert not {op for op in ops if op.startswith(("Xla", "Random", "StatelessRandom"))}


# ---------------------------------------------------------------------- a model of the brightness


@pytest.fixture(scope="module")
def brightness() -> keras.Model:
    """A model whose probability of pneumonia is the mean brightness, 0 to 1."""
    images = keras.Input((64, 64, 3), name="images")
    embedding = keras.layers.GlobalAveragePooling2D()(images / 255)
    embedding = keras.layers.Identity(name="embedding")(embedding)
    second = embedding[:, :1]
    return keras.Model(images, keras.ops.concatenate([1 - second, second], axis=1))


def export(model: keras.Model, base: Path, threshold: float = 0.5) -> Path:
    return serving_export.export_classifier(
        model, base, classes=("normal", "pneumonia"), threshold=threshold, card={"classes": ["a"]}
    )


def test_threshold_in_the_graph_sets_the_label(brightness: keras.Model, tmp_path: Path) -> None:
    base = tmp_path / "models" / "bright"
    first, second = export(brightness, base, 0.25), export(brightness, base, 0.75)
    images = np.full((3, 64, 64, 3), [[[[51]]], [[[128]]], [[[204]]]], np.float32)
    for folder, expected in ((first, "npp"), (second, "nnp")):
        served = loading.load_served(str(folder))
        out = served.signature("tensor")(images=tf.constant(images))
        assert "".join(x.decode()[0] for x in out["label"].numpy()) == expected
        np.testing.assert_allclose(out["probabilities"][:, 1], [0.2, 128 / 255, 0.8], atol=1e-3)
    # Exactly on the threshold is positive.
    assert serving_export.decide(tf.constant([[0.5, 0.5], [0.6, 0.4]]), 0.5).numpy().tolist() == [
        1,
        0,
    ]
    assert serving_export.decide(tf.constant([[0.2, 0.3, 0.5]]), 0.9).numpy().tolist() == [2]


@pytest.fixture(scope="module")
def exported(brightness: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(brightness, tmp_path_factory.mktemp("exported") / "bright")


def copy(exported: Path, base: Path) -> Path:
    """Copy the model as the next version under `base`, which is faster than exporting it again."""
    return versions.write_version(base, lambda f: shutil.copytree(exported, f), card={})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_versions_are_numbered_consecutively_and_never_changed(
    exported: Path, tmp_path: Path
) -> None:
    base = tmp_path / "bright"
    assert copy(exported, base) == base / "1"
    before = contents(base / "1")
    assert copy(exported, base) == base / "2"
    (base / "9").mkdir()
    (base / "notes.txt").write_text("mine")
    assert copy(exported, base) == base / "10"
    assert contents(base / "1") == before
    assert sorted(p.name for p in base.iterdir()) == ["1", "10", "2", "9", "notes.txt"]
    assert loading.load_served(str(base)).folder == base / "10"
    card = json.loads((base / "10" / "assets.extra" / "model_card.json").read_text())
    assert (card["name"], card["version"]) == ("bright", 10)


FULL_DISK = OSError(28, "No space left on device")

# As TensorFlow reports it.
FULL_DISK_BELOW = tf.errors.ResourceExhaustedError(
    None, None, "variables/variables.data-00000-of-00001; No space left on device"
)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), FULL_DISK, FULL_DISK_BELOW])
@pytest.mark.parametrize("where", ["write", "write_warm_up", "write_json", "publish"])
def test_interrupted_export_leaves_no_files(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop, where: str
) -> None:
    def broken(*args, **kwargs):
        raise stop

    def write(folder: str) -> None:
        shutil.copytree(exported, folder)
        if where == "write":
            broken()

    base = tmp_path / "models" / "bright"
    error = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else UserError
    message = (
        None if error is KeyboardInterrupt else "No space left on device; nothing was exported"
    )
    with monkeypatch.context() as patch:
        if where != "write":
            patch.setattr(versions, where, broken)
        for before in ([], ["1"]):
            for name in before:
                (base / name).mkdir(parents=True)
            with pytest.raises(error, match=message):
                versions.write_version(base, write, card={})
            assert [p.name for p in tmp_path.rglob("*") if p not in (base, base.parent)] == before
            assert base.parent.exists() == bool(before)
    if where == "write":
        return
    assert versions.write_version(base, write, card={}) == base / "2"


def test_other_errors_of_tensorflow_are_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    def write(folder: str) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        versions.write_version(tmp_path / "bright", write, card={})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_model_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    versions.check_saved_models(str(tmp_path / "new" / "saved_models"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("text")
    for path in ("file", "file/saved_models"):
        with pytest.raises(UserError, match="is a file, not a folder: choose another"):
            versions.check_saved_models(str(tmp_path / path))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path in ("link", "link/saved_models"):
        with pytest.raises(UserError, match="link is a broken link"):
            versions.check_saved_models(str(tmp_path / path))
    versions.check_saved_models(str(tmp_path), "vgg16")
    with pytest.raises(UserError, match="file is not a folder"):
        versions.check_saved_models(str(tmp_path), "file")
    (tmp_path / "models.config").write_text("model_config_list { my notes }")
    with pytest.raises(UserError, match="not a ModelServerConfig"):
        versions.check_saved_models(str(tmp_path))


def test_leftovers_of_a_killed_export_are_not_a_version_and_are_removed(
    exported: Path, tmp_path: Path
) -> None:
    base = tmp_path / "bright"
    (base / ".writing-1" / "variables").mkdir(parents=True)
    (base / ".writing-1" / "saved_model.pb").write_bytes(b"half")
    assert model_config.model_versions(base) == []
    with pytest.raises(UserError, match="neither a SavedModel nor versions"):
        loading.load_served(str(base))
    assert copy(exported, base) == base / "1"
    assert [p.name for p in base.iterdir()] == ["1"]


def test_folder_without_an_exported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        loading.load_served(str(tmp_path / "none"))
    with pytest.raises(UserError, match="neither a SavedModel nor versions"):
        loading.load_served(str(tmp_path))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(UserError, match="not a SavedModel of cxr_tf"):
        loading.load_served(str(tmp_path))
    (tmp_path / "1" / "assets.extra").mkdir()
    for card, message in (("{", "model_card.json is damaged"), ("{}", "cannot be loaded")):
        (tmp_path / "1" / "assets.extra" / "model_card.json").write_text(card)
        with pytest.raises(UserError, match=message):
            loading.load_served(str(tmp_path))


def test_only_the_model_of_the_run_itself_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded path is relative to the directory in which the model was trained."""

    def trained(project: Path, auroc: float) -> Run:
        card = {
            "kind": "classifier",
            "data_fingerprint": project.name,
            "metrics": {"test": {"auroc": auroc}},
        }

        def write(folder: str) -> None:
            tf.saved_model.save(tf.Module(), folder)

        versions.write_version(project / "saved_models" / "one", write, card=card)
        run = Run(project / "logs" / "classifier" / "one")
        run.directory.mkdir(parents=True)
        model = {"saved_model": "saved_models/one/1"}
        write_json(run.directory / "config.json", {"data_fingerprint": project.name})
        run.write_metrics({"test": {"auroc": auroc, "accuracy": 0.5}, "model": model})
        return run

    mine, other = trained(tmp_path / "mine", 1.0), trained(tmp_path / "other", 1.0)
    for place in ("mine", "other", "."):
        monkeypatch.chdir(tmp_path / place)
        found = tmp_path / "mine" / "saved_models" / "one" / "1"
        assert versions.exported_by(mine).resolve() == found
    shutil.rmtree(tmp_path / "mine" / "saved_models")
    with pytest.raises(UserError, match="which does not exist"):
        versions.exported_by(mine)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UserError, match="which contains another model"):
        versions.exported_by(mine)
    assert versions.exported_by(other) == Path("saved_models/one/1")


def test_other_folders_beside_the_versions_are_ignored(tmp_path: Path) -> None:
    for name in ("1", "10", "²", "old", ".writing-11"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert model_config.model_versions(tmp_path) == [1, 10]


def test_incomplete_copy_of_a_model_is_refused(finished: TrainClassifier, tmp_path: Path) -> None:
    shutil.copytree(Path(finished.saved_models) / finished.name, tmp_path / "copied")
    variables = next(tmp_path.glob("copied/1/variables/*.data*"))
    variables.write_bytes(variables.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged: variables"):
        loading.load_served(str(tmp_path / "copied"))


def test_error_of_a_prediction_names_the_unreadable_file(
    finished: TrainClassifier, tmp_path: Path
) -> None:
    served = loading.load_served(str(Path(finished.saved_models) / finished.name))
    rows = predictions(finished)[:5]
    paths = [r["path"] for r in rows]
    probabilities, labels = loading.predict_files(served, paths, batch_size=2)
    np.testing.assert_allclose(
        probabilities[:, 1], [float(r["pneumonia"]) for r in rows], atol=1e-4
    )
    assert [served.classes[k] for k in labels] == [r["predicted"] for r in rows]
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[0]).read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken\.png: truncated"):
        loading.predict_files(served, [*paths, str(broken)], batch_size=4)
    with pytest.raises(UserError, match=r"no signature 'explain'; it has .*serving_default"):
        served.signature("explain")
    with pytest.raises(UserError, match="does not take image files"):
        served.predictor("tensor")


def test_weights_are_stored_once(finished: TrainClassifier) -> None:
    folder = Path(finished.saved_models) / finished.name / "1"
    stored = [
        shape
        for name, shape in tf.train.list_variables(str(folder / "variables" / "variables"))
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    model = keras.saving.load_model(
        Path(finished.logs) / "classifier" / finished.name / "model.keras", compile=False
    )
    assert sum(int(np.prod(shape)) for shape in stored) == model.count_params()


def test_model_exported_before_an_interruption_is_not_exported_again(tmp_path: Path) -> None:
    base = tmp_path / "models" / "one"
    card = {"kind": "classifier", "metrics": {"auroc": 0.1 + 0.2}, "classes": ("a", "b")}
    written: list[str] = []

    def write(folder: str) -> None:
        written.append(folder)
        tf.saved_model.save(tf.Module(), folder)

    first = versions.write_version(base, write, card={**card, "training_digests": {"00"}})
    (base.parent / "models.config").unlink()  # interrupted before it was brought up to date
    again = versions.write_version(
        base, write, card={**card, "training_digests": {"00"}}, resumed=True
    )
    assert again == first and len(written) == 1
    assert (base.parent / "models.config").exists()
    other = {**card, "metrics": {"auroc": 0.4}}
    assert versions.write_version(base, write, card=other, resumed=True) == base / "2"
    # Without an interruption every export is a version.
    assert versions.write_version(base, write, card=other) == base / "3"


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
