"""OpenVINO predicts the same as TensorFlow, which runs the signatures that OpenVINO cannot."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from random_classifier import random_classifier

from cxr_tf.anomaly import drawing
from cxr_tf.config import Evaluate, FitKnn, Predict
from cxr_tf.errors import UserError
from cxr_tf.evaluation import evaluate
from cxr_tf.models.autoencoder import build_autoencoder, build_network
from cxr_tf.models.classifier import build_classifier
from cxr_tf.scoring import classifier as scoring_classifier
from cxr_tf.serving import export as serving_export
from cxr_tf.serving import loading
from cxr_tf.serving.open_model import open_signature
from cxr_tf.serving.prediction import client
from cxr_tf.serving.prediction.client import BadImages
from cxr_tf.serving.runtimes import openvino_engine
from cxr_tf.serving.store import cards

CLASSES = ("normal", "bacterial", "viral")


def export(root: Path, model: keras.Model) -> Path:
    card = {"kind": "classifier", "task": "three_class", "classes": CLASSES, "image_size": 64}
    card |= {"backbone": model.name, "data_fingerprint": "", "input": "", "limits": ""}
    return serving_export.export_classifier(
        model,
        root / model.name,
        classes=CLASSES,
        threshold=0.5,
        card={**card, "threshold": 0.5},
    )


@pytest.fixture(scope="module")
def models(tiny_backbone: str, images: list[bytes], tmp_path_factory) -> Path:
    """An untrained classifier, nearest neighbours of its embeddings, and an autoencoder."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline

    root = tmp_path_factory.mktemp("engine")
    keras.utils.set_random_seed(3)
    model = build_classifier(tiny_backbone, classes=3, image_size=64)
    classifier = loading.load_served(str(export(root, model)))
    embeddings = classifier.predictor("embed")(images)["embedding"]
    labels = np.arange(len(images)) % 3
    knn = Pipeline([("knn", KNeighborsClassifier(3, weights="distance"))]).fit(embeddings, labels)
    serving_export.export_knn(
        classifier,
        root / "knn",
        pipeline=knn,
        index=knn[-1]._fit_X.astype(np.float32),
        index_labels=labels,
        index_paths=[f"{k}.png" for k in range(len(images))],
        novelty_limit=0.1,
        card={**classifier.card, "kind": "knn"},
        write_beside=lambda folder: None,
    )
    serving_export.export_autoencoder(
        build_autoencoder(build_network("denoising", 128), "residual"),
        root / "autoencoder",
        threshold=0.2,
        healthy_scores=np.linspace(0, 1, 50),
        card={"kind": "autoencoder", "task": "binary", "image_size": 128},
    )
    return root


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((phantoms / "train").rglob("*.png"))[:12]]


@pytest.fixture(scope="module")
def others(phantoms: Path) -> list[bytes]:
    """Images that are not in the index of the neighbours, so that every distance is above 0."""
    return [p.read_bytes() for p in sorted((phantoms / "test").rglob("*.png"))[:5]]


def on_tensorflow(graph: Any, outputs: list[str]) -> Any:
    """Return the network of a graph as a function, like OpenVINO after compiling it."""
    whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    inputs = [x.outputs[0] for x in whole.graph.get_operations() if x.type == "Placeholder"]
    assert [x.dtype for x in inputs] == [tf.uint8]
    network = whole.prune(inputs, [whole.graph.get_tensor_by_name(x) for x in outputs])
    return lambda pixels: dict(
        zip(outputs, [x.numpy() for x in network(tf.constant(pixels))], strict=True)
    )


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for OpenVINO that runs TensorFlow and applies `alters` to the outputs."""

    def compile_model(model: tuple[Any, list[str]], *_: Any) -> Callable:
        network = on_tensorflow(*model)
        return lambda pixels: {k: openvino.alters(v) for k, v in network(pixels).items()}

    openvino: Any = ModuleType("openvino")
    openvino.alters = lambda values: values
    openvino.convert_model = lambda network, output, **_: (network.as_graph_def(), output)
    openvino.Core = lambda: SimpleNamespace(
        compile_model=compile_model, get_property=lambda *_: ["BF16"]
    )
    for module in (openvino, ModuleType("nncf")):
        module.__spec__ = ModuleSpec(module.__name__, None)  # by which it is installed
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [])
    return openvino


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        if values.dtype.kind == "f":
            scale = max(1.0, np.abs(values).max())
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4 * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


# ---------------------------------------------------------------------- the same answers


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("tiny", "serving_default"),
        ("tiny", "embed"),
        ("knn", "serving_default"),
        ("autoencoder", "explain"),
    ],
)
def test_outputs_match_tensorflow(
    models: Path, others: list[bytes], name: str, signature: str
) -> None:
    tensorflow = loading.load_served(str(models / name))
    served = loading.load_served(str(models / name), engine="openvino")
    assert served.engine_for(signature) == "openvino"
    expected = tensorflow.predictor(signature)(others)
    if name == "tiny":
        (values,) = (v for v in expected.values() if v.dtype.kind == "f")
        assert np.ptp(values, axis=0).max() > 0.01, "else all images look alike to it"
    ask = served.predictor(signature)
    for batch in (slice(0, 5), slice(0, 1), slice(2, 5)):
        assert_equal(ask(others[batch]), {k: v[batch] for k, v in expected.items()})
    # Taking a signature apart leaves the loaded model as it was.
    again = served.signature(signature)(image_bytes=tf.constant(others))
    for k, v in expected.items():
        np.testing.assert_array_equal(client.as_text(again[k].numpy()), v)


def test_outputs_of_a_real_backbone_match_tensorflow(
    others: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of no interest here, and half a minute to trace.
    monkeypatch.setattr(serving_export.occlusion_occluder, "make_occluder", lambda *_: None)
    monkeypatch.setattr(
        serving_export.occlusion_occluder, "heatmaps_of", lambda _, images, *__: images[..., 0]
    )
    folder = str(export(tmp_path, random_classifier("resnet50", 64)))
    served = loading.load_served(folder, engine="openvino")
    tensorflow = loading.load_served(folder)
    assert_equal(
        served.predictor("serving_default")(others), tensorflow.predictor("serving_default")(others)
    )


def test_a_bad_image_is_reported_as_by_tensorflow(models: Path, others: list[bytes]) -> None:
    served = loading.load_served(str(models / "tiny"), engine="openvino")
    with pytest.raises(BadImages) as bad:
        served.predictor("serving_default")([others[0], b"", others[1], b"GIF89a and more"])
    assert bad.value.reasons == {1: "empty", 3: "neither JPEG nor PNG"}


def test_outputs_repeat_bit_for_bit(models: Path, others: list[bytes]) -> None:
    first, second = (
        loading.load_served(str(models / "tiny"), engine="openvino").predictor("embed")(others)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first["embedding"], second["embedding"])


@pytest.mark.parametrize("wanted", ["auto", "openvino"])
def test_occlusion_runs_on_tensorflow(
    stand_in: Any, models: Path, others: list[bytes], wanted: str, caplog: Any
) -> None:
    served = loading.load_served(str(models / "tiny"), engine=wanted)
    if wanted == "openvino":
        with pytest.raises(UserError, match=r"cannot run 'occlusion' of .*--engine tensorflow"):
            served.predictor("occlusion")
        return
    assert served.engine_for("occlusion") == "tensorflow"
    assert served.predictor("occlusion")(others[:1])["heatmap"].shape == (1, 64, 64)
    assert len(caplog.messages) == 1 and "'occlusion' runs on TensorFlow" in caplog.messages[0]


# ---------------------------------------------------------------------- who runs


def test_missing_openvino_is_an_error_with_the_installation_command(
    without_openvino: None, models: Path
) -> None:
    with pytest.raises(UserError, match=r"pip install -r requirements-openvino\.txt"):
        loading.load_served(str(models / "tiny"), engine="openvino")
    served = loading.load_served(str(models / "tiny"), engine="auto")
    assert served.engine_for("serving_default") == "tensorflow"


@pytest.mark.parametrize(
    ("installed", "gpus", "taken"), [(True, [], True), (True, ["GPU:0"], False), (False, [], False)]
)
def test_auto_needs_openvino_and_no_gpu(
    monkeypatch: pytest.MonkeyPatch, installed: bool, gpus: list[str], taken: bool
) -> None:
    found = object() if installed else None
    monkeypatch.setattr(openvino_engine.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    assert openvino_engine.takes_openvino("auto") == taken
    assert not openvino_engine.takes_openvino("tensorflow")


@pytest.mark.parametrize("wanted", ["auto", "tensorflow"])
def test_bfloat16_needs_engine_openvino(wanted: str) -> None:
    with pytest.raises(UserError, match="needs --engine openvino"):
        openvino_engine.takes_openvino(wanted, "bfloat16")


def test_auto_falls_back_to_tensorflow(
    stand_in: Any, models: Path, others: list[bytes], caplog: Any
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this\nand a page more")

    stand_in.convert_model = fails
    expected = loading.load_served(str(models / "tiny")).predictor("serving_default")(others)
    served = loading.load_served(str(models / "tiny"), engine="auto")
    with caplog.at_level(logging.WARNING):
        found = served.predictor("serving_default")(others)
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    assert caplog.messages == [
        "signature 'serving_default' runs on TensorFlow instead of OpenVINO: no kernel for this"
    ]
    must = loading.load_served(str(models / "tiny"), engine="openvino")
    with pytest.raises(UserError, match=r"no kernel for this\): use --engine tensorflow"):
        must.predictor("serving_default")


@pytest.mark.parametrize("wrong", [lambda p: p + 3e-4, lambda p: p * np.nan])
def test_outputs_that_differ_from_tensorflow_are_rejected(
    stand_in: Any, models: Path, wrong: Callable
) -> None:
    stand_in.alters = wrong
    with pytest.raises(UserError, match="'probabilities' differs from TensorFlow's by"):
        loading.load_served(str(models / "tiny"), engine="openvino").predictor("serving_default")


def test_engine_flag_is_refused_with_a_server() -> None:
    settings = Predict(model="m", images=("a.png",), server="http://localhost:1", engine="openvino")
    with pytest.raises(UserError, match="--engine and --engine-precision are for a model on disk"):
        open_signature(settings)


def test_usage_reports_are_off(models: Path, tmp_path: Path) -> None:
    program = """
import sys
from cxr_tf.serving.loading import load_served
assert "openvino" not in sys.modules
served = load_served(sys.argv[1], engine="openvino")
assert served.engine_for("embed") == "openvino"
assert "openvino" in sys.modules and sys.modules["openvino_telemetry"] is None
"""
    # It leaves its reports out in CI, and keeps their sender's number in the home folder.
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD")}
    environment["HOME"] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-c", program, str(models / "tiny")], check=True, env=environment
    )
    assert not list(tmp_path.rglob("*openvino*"))


@pytest.mark.parametrize(("backbone", "taken"), [("alexnet", "tensorflow"), ("resnet50", "auto")])
def test_auto_selects_tensorflow_if_it_is_faster(
    stand_in: Any, models: Path, tmp_path: Path, backbone: str, taken: str
) -> None:
    folder = shutil.copytree(models / "tiny" / "1", tmp_path / "1")
    card = json.loads((folder / cards.CARD).read_text())
    (folder / cards.CARD).write_text(json.dumps({**card, "backbone": backbone}))
    assert loading.load_served(str(folder), engine="auto").engine == taken
    assert loading.load_served(str(folder), engine="openvino").engine == "openvino"


# ---------------------------------------------------------------------- the jobs


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures: they take most of an evaluation's time, and are tested elsewhere."""
    monkeypatch.setattr(scoring_classifier, "draw_split", lambda *_: None)
    monkeypatch.setattr(drawing, "draw_split", lambda *_: None)


@pytest.mark.parametrize("name", ["tiny", "autoencoder"])
def test_evaluation_gives_the_same_scores(
    models: Path, phantoms: Path, tmp_path: Path, name: str, no_figures: None
) -> None:
    def scores(wanted: Any) -> dict:
        settings = Evaluate(
            model=str(models / name), data=str(phantoms), engine=wanted, bootstrap_samples=3,
            name=wanted, logs=str(tmp_path),
        )  # fmt: skip
        return evaluate.evaluate(settings).metrics

    found, expected = scores("openvino"), scores("tensorflow")
    for metric in ("auroc", "brier", "accuracy"):
        if metric in expected["test"]:
            assert found["test"][metric] == pytest.approx(expected["test"][metric], abs=1e-3)
    if name != "autoencoder":
        assert found["engine"] == {"name": "openvino", "precision": "float32"}
        assert expected["engine"] == {"name": "tensorflow", "precision": "float32"}


@pytest.mark.parametrize("spoil", [False, True])
def test_the_cost_of_a_precision_is_logged(
    stand_in: Any,
    models: Path,
    phantoms: Path,
    tmp_path: Path,
    caplog: Any,
    no_figures: None,
    spoil: bool,
) -> None:
    if spoil:
        stand_in.alters = lambda values: values[:, ::-1]
    settings = Evaluate(
        model=str(models / "tiny"), data=str(phantoms), engine="openvino",
        engine_precision="bfloat16", bootstrap_samples=3, name="rough", logs=str(tmp_path),
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        measured = evaluate.evaluate(settings).metrics["engine"]
    assert measured["precision"] == "bfloat16"
    lost = measured["val_auroc_float32"] - measured["val_auroc"]
    (line,) = [m for m in caplog.messages if "validation images: AUROC" in m]
    validation = len(list((phantoms / "val").rglob("*.png")))
    change = measured["val_auroc"] - measured["val_auroc_float32"]
    assert f"{validation} validation images" in line and f"(change {change:+.4f})" in line
    assert line.endswith("leave out --engine-precision") == (lost > 0.002)
    if not spoil:
        assert lost == 0


def test_neighbors_of_openvino_embeddings_are_exported(
    stand_in: Any, models: Path, phantoms: Path, tmp_path: Path
) -> None:
    from cxr_tf.neighbors.embeddings import fingerprint
    from cxr_tf.neighbors.fit_knn import fit_knn

    noise = np.random.default_rng(0)
    stand_in.alters = lambda v: (v * (1 + noise.normal(0, 1e-5, v.shape))).astype(np.float32)
    settings = FitKnn(
        classifier=str(models / "tiny"), data=str(phantoms), engine="openvino",
        bootstrap_samples=3, name="knn", logs=str(tmp_path / "logs"),
        saved_models=str(tmp_path / "saved_models"),
    )  # fmt: skip
    run = fit_knn(settings)
    results = run.metrics
    assert results["model"]["engine"] == "openvino"
    assert results["served_agreement"]["equal"] == results["test"]["images"]
    # TensorFlow's embeddings and these are never confused.
    with np.load(run.directory / "embeddings.npz") as stored:
        assert str(stored["model"]) == fingerprint(models / "tiny" / "1") + "-openvino"


@pytest.mark.parametrize("name", ["autoencoder", "knn"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_lower_precisions_are_for_classifiers_only(
    stand_in: Any, models: Path, name: str, precision: Any
) -> None:
    settings = Predict(
        model=str(models / name),
        images=("a.png",),
        engine="openvino",
        engine_precision=precision,
    )
    with pytest.raises(UserError, match=f"--engine-precision {precision} is for classifiers"):
        open_signature(settings)


def test_a_missing_quantizer_is_an_error_with_the_installation_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        openvino_engine.importlib.util,
        "find_spec",
        lambda name: None if name == "nncf" else object(),
    )
    with pytest.raises(UserError, match=r"int8 needs NNCF: pip install -r requirements-openvino"):
        openvino_engine.takes_openvino("openvino", "int8")


def test_int8_is_close_and_independent_of_the_batch(
    models: Path, others: list[bytes], capsys: pytest.CaptureFixture
) -> None:
    exact = loading.load_served(str(models / "tiny")).predictor("serving_default")(others)
    first, second = (
        loading.load_served(str(models / "tiny"), engine="openvino", precision="int8")
        for _ in range(2)
    )
    rough = first.predictor("serving_default")(others)["probabilities"]
    alone = second.predictor("serving_default")(others[2:3])["probabilities"]
    np.testing.assert_allclose(alone[0], rough[2], rtol=0, atol=1e-6)
    difference = np.abs(rough - exact["probabilities"]).max()
    assert 1e-5 < difference < 0.02
    assert capsys.readouterr().out == "", "predict.py prints its table there"


def test_int8_gives_no_embeddings(stand_in: Any, models: Path) -> None:
    served = loading.load_served(str(models / "tiny"), engine="openvino", precision="int8")
    with pytest.raises(UserError, match="int8 is for predictions, not for embeddings"):
        served.predictor("embed")


def test_bfloat16_is_close_but_not_equal_to_float32(models: Path, others: list[bytes]) -> None:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UserError, match="this CPU does not support bfloat16"):
            openvino_engine.takes_openvino("openvino", "bfloat16")
        return
    served = loading.load_served(str(models / "tiny"), engine="openvino", precision="bfloat16")
    exact = loading.load_served(str(models / "tiny")).predictor("serving_default")(others)
    rough = served.predictor("serving_default")(others)
    difference = np.abs(rough["probabilities"] - exact["probabilities"]).max()
    assert 1e-4 < difference < 0.1


def test_tensorflow_still_has_the_private_names_that_freezing_needs() -> None:
    from tensorflow.python.framework import convert_to_constants as freezing

    for name in ("_FunctionConverterDataInEager", "_replace_variables_by_constants"):
        assert hasattr(freezing, name), f"{name} is gone: see openvino_engine._inlined"
