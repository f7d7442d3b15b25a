"""What is served is what was measured; a version appears whole, and never changes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_tf import serving
from cxr_tf.errors import UserError
from cxr_tf.models.classifier import build_classifier
from cxr_tf.settings import TrainClassifier

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
    """What a process that knows nothing but TensorFlow gets for the images of val and test."""
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


def test_what_is_served_is_what_was_measured(finished: TrainClassifier, answer: dict) -> None:
    rows = predictions(finished)
    measured = np.array([[float(r["normal"]), float(r["pneumonia"])] for r in rows])
    np.testing.assert_allclose(answer["probabilities"], measured, atol=1e-4)
    # Also of the images whose score made the threshold (Youden's point).
    assert answer["label"] == [r["predicted"] for r in rows]
    assert answer["classes"] == [["normal", "pneumonia"]] * len(rows)
    assert answer["embedding"] == [len(rows), 512]


def test_signatures_are_those_of_the_contract(answer: dict) -> None:
    out = {
        "probabilities": ["float32", [None, 2]],
        "classes": ["string", [None, 2]],
        "label": ["string", [None]],
    }
    contents = {"image_bytes": ["string", [None]]}
    signatures = answer["signatures"]
    assert signatures["serving_default"] == {"in": contents, "out": out}
    assert signatures["tensor"] == {"in": {"images": ["float32", [None, 64, 64, 3]]}, "out": out}
    assert signatures["embed"] == {"in": contents, "out": {"embedding": ["float32", [None, 512]]}}


def test_a_client_needs_tensorflow_alone(answer: dict) -> None:
    assert "cxr_tf" not in answer["imported"]


def test_the_graph_needs_no_python_and_no_tables(finished: TrainClassifier) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    folder = Path(finished.saved_models) / finished.name / "1"
    graph = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    ops = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert "DecodeImage" in ops
    assert not {op for op in ops if "PyFunc" in op or "HashTable" in op or "Lookup" in op}
    # Nothing is compiled for one machine, and nothing is random.
    assert not {op for op in ops if op.startswith(("Xla", "Random", "StatelessRandom"))}


# ---------------------------------------------------------------------- a model made by hand


@pytest.fixture(scope="module")
def brightness() -> keras.Model:
    """Probability of pneumonia: the mean brightness, 0 to 1."""
    images = keras.Input((64, 64, 3), name="images")
    embedding = keras.layers.GlobalAveragePooling2D()(images / 255)
    embedding = keras.layers.Identity(name="embedding")(embedding)
    second = embedding[:, :1]
    return keras.Model(images, keras.ops.concatenate([1 - second, second], axis=1))


def export(model: keras.Model, base: Path, threshold: float = 0.5) -> Path:
    return serving.export_classifier(
        model, base, classes=("normal", "pneumonia"), threshold=threshold, card={"classes": ["a"]}
    )


def test_the_threshold_in_the_graph_decides(brightness: keras.Model, tmp_path: Path) -> None:
    base = tmp_path / "models" / "bright"
    first, second = export(brightness, base, 0.25), export(brightness, base, 0.75)
    images = np.full((3, 64, 64, 3), [[[[51]]], [[[128]]], [[[204]]]], np.float32)
    for folder, expected in ((first, "npp"), (second, "nnp")):
        served = serving.load_served(str(folder))
        out = served.signature("tensor")(images=tf.constant(images))
        assert "".join(x.decode()[0] for x in out["label"].numpy()) == expected
        np.testing.assert_allclose(out["probabilities"][:, 1], [0.2, 128 / 255, 0.8], atol=1e-3)
    # Exactly on the threshold is positive.
    assert serving.decide(tf.constant([[0.5, 0.5], [0.6, 0.4]]), 0.5).numpy().tolist() == [1, 0]
    assert serving.decide(tf.constant([[0.2, 0.3, 0.5]]), 0.9).numpy().tolist() == [2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_versions_are_counted_up_and_never_changed(brightness: keras.Model, tmp_path: Path) -> None:
    base = tmp_path / "bright"
    assert export(brightness, base) == base / "1"
    before = contents(base / "1")
    assert export(brightness, base) == base / "2"
    (base / "9").mkdir()
    (base / "notes.txt").write_text("mine")
    assert export(brightness, base) == base / "10"
    assert contents(base / "1") == before
    assert sorted(p.name for p in base.iterdir()) == ["1", "10", "2", "9", "notes.txt"]
    assert serving.load_served(str(base)).folder == base / "10"
    card = json.loads((base / "10" / "assets.extra" / "model_card.json").read_text())
    assert (card["name"], card["version"]) == ("bright", 10)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["save", "write_json", "rename"])
def test_an_export_that_stops_half_way_leaves_nothing(
    brightness: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop, where: str
) -> None:
    def broken(*args, **kwargs):
        if where == "save":
            (Path(args[1]) / "variables").mkdir(parents=True)
            (Path(args[1]) / "saved_model.pb").write_bytes(b"half")
        raise stop

    owner = {"save": tf.saved_model, "write_json": serving, "rename": serving.os}
    base = tmp_path / "bright"
    with monkeypatch.context() as patch:
        patch.setattr(owner[where], where, broken)
        with pytest.raises(stop if isinstance(stop, type) else OSError):
            export(brightness, base)
        assert list(tmp_path.iterdir()) == []
        (base / "1").mkdir(parents=True)
        with pytest.raises(stop if isinstance(stop, type) else OSError):
            export(brightness, base)
    assert [p.name for p in base.iterdir()] == ["1"]


def test_what_a_killed_export_left_is_no_version_and_goes(
    brightness: keras.Model, tmp_path: Path
) -> None:
    base = tmp_path / "bright"
    (base / ".writing-1" / "variables").mkdir(parents=True)
    (base / ".writing-1" / "saved_model.pb").write_bytes(b"half")
    assert serving.versions(base) == []
    with pytest.raises(UserError, match="no versions"):
        serving.load_served(str(base))
    assert export(brightness, base) == base / "1"
    assert [p.name for p in base.iterdir()] == ["1"]


def test_what_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        serving.load_served(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no SavedModel"):
        serving.load_served(str(tmp_path))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(UserError, match="not a SavedModel of cxr_tf"):
        serving.load_served(str(tmp_path))
    (tmp_path / "1" / "assets.extra").mkdir()
    (tmp_path / "1" / "assets.extra" / "model_card.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        serving.load_served(str(tmp_path))


def test_predictions_name_the_file_that_cannot_be_read(
    finished: TrainClassifier, tmp_path: Path
) -> None:
    served = serving.load_served(str(Path(finished.saved_models) / finished.name))
    rows = predictions(finished)[:5]
    paths = [r["path"] for r in rows]
    probabilities, labels = serving.predict_files(served, paths, batch_size=2)
    np.testing.assert_allclose(
        probabilities[:, 1], [float(r["pneumonia"]) for r in rows], atol=1e-4
    )
    assert [served.classes[k] for k in labels] == [r["predicted"] for r in rows]
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[0]).read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken\.png: truncated"):
        serving.predict_files(served, [*paths, str(broken)], batch_size=4)
    with pytest.raises(UserError, match=r"no signature 'explain'; it has .*serving_default"):
        served.signature("explain")


def test_colour_and_size_of_the_file_do_not_matter_to_the_server(
    tiny_backbone: str, tmp_path: Path
) -> None:
    """The same radiograph as gray and RGB, PNG of 8 and 16 bits."""
    import io

    from PIL import Image

    gray = np.random.default_rng(0).integers(0, 256, (80, 100)).astype(np.uint8)
    pictures = (
        Image.fromarray(gray),
        Image.fromarray(np.stack([gray] * 3, axis=-1)),
        Image.fromarray(gray.astype(np.uint16) << 8),
    )
    files = []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        files.append(stream.getvalue())
    model = build_classifier(tiny_backbone, classes=2, image_size=64)
    served = serving.load_served(str(export(model, tmp_path / "tiny")))
    out = served.signature("serving_default")(image_bytes=tf.constant(files))
    first, *others = out["probabilities"].numpy()
    for other in others:
        np.testing.assert_array_equal(other, first)


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
