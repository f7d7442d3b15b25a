"""Requirements of TF Serving, in a process that imports only TensorFlow.

Its binary is not needed: the SavedModel is loaded as by its own loader, REST bodies are
converted by its documented rules, and its files are read by its own protocol buffers.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_models import MODELS

from cxr_tf.serving import loading
from cxr_tf.serving.store import cards


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[str]:
    return [str(p) for p in sorted((phantoms / "test").rglob("*.png"))[:3]]


@pytest.fixture(scope="module")
def found(small_models: Path, images: list[str], tmp_path_factory) -> dict[str, dict]:
    """The results of the process without this package, by the name of the model."""
    work = tmp_path_factory.mktemp("bare")
    job = {"models": [str(small_models / m / "1") for m in MODELS], "images": images}
    (work / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parents[1] / "support" / "bare_tensorflow.py"
    done = subprocess.run(
        [sys.executable, script, work / "job.json", work / "out.json"],
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((work / "out.json").read_text())
    return {Path(folder).parent.name: answer for folder, answer in answers.items()}


def models() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", MODELS)


def test_nothing_but_tensorflow_is_needed(found: dict) -> None:
    # Of the first model: later the process uses tools that import more. (TensorFlow
    # imports Keras by itself, and Keras scikit-learn.)
    assert "tensorflow" in found["tiny"]["imported"]
    assert not {"cxr_tf", "tensorflow_serving"} & set(found["tiny"]["imported"])


@models()
def test_all_request_formats_give_the_same_predictions(
    found: dict, name: str, small_models: Path, images: list[str]
) -> None:
    served = loading.load_served(str(small_models / name))
    for signature, answer in found[name]["columns"].items():
        expected = served.predictor(signature)(served.decode(images))
        columns = answer["outputs"]
        if len(expected) == 1:
            (only,) = expected
            columns = {only: columns}
            rows = [{only: row} for row in found[name]["rows"][signature]["predictions"]]
        else:
            rows = found[name]["rows"][signature]["predictions"]
        assert set(columns) == set(expected) == set(rows[0])
        assert answer == found[name]["named"][signature]
        for key, values in expected.items():
            if values.dtype == object:
                assert columns[key] == values.tolist()
            else:
                np.testing.assert_allclose(columns[key], values, rtol=1e-5, atol=1e-6)
            assert [row[key] for row in rows] == columns[key]
    default = found[name]["rows"]["serving_default"]
    assert found[name]["nameless"] == default
    assert len({json.dumps(row) for row in default["predictions"]}) == len(images)


@models()
def test_a_bad_image_is_named_by_its_position(found: dict, name: str) -> None:
    message = found[name]["refused"]
    assert "image_bytes[1]: neither JPEG nor PNG (4 bytes)" in message
    assert "image_bytes[2]: empty (0 bytes)" in message and "image_bytes[0]" not in message


@models()
def test_warm_up_calls_every_signature_once(found: dict, name: str, small_models: Path) -> None:
    records = found[name]["warm_up"]
    card = json.loads((small_models / name / "1" / cards.CARD).read_text())
    assert [r["signature"] for r in records] == sorted(card["signatures"])
    for record in records:
        assert record["kind"] == "predict_log" and record["model"] == name
        outputs = card["signatures"][record["signature"]]["outputs"]
        assert record["finite"] and set(record["outputs"]) == set(outputs)
        for key, shape in record["outputs"].items():
            assert shape == [1, *outputs[key]["shape"][1:]]


@models()
def test_saved_model_cli_shows_and_runs_the_model(found: dict, name: str) -> None:
    for signature, outputs in found[name]["cli"].items():
        assert f"signature_def['{signature}']" in found[name]["show"]
        columns = found[name]["named"][signature]["outputs"]
        columns = columns if isinstance(columns, dict) else {next(iter(outputs)): columns}
        assert set(outputs) == set(columns)
        for key, values in outputs.items():
            assert f"outputs['{key}']" in found[name]["show"]
            if isinstance(np.ravel(values)[0], str):
                assert values == columns[key][:2]
            else:
                np.testing.assert_allclose(values, columns[key][:2], rtol=1e-4, atol=1e-6)
    assert "image_bytes" in found[name]["show"]


@models()
def test_graph_has_only_operations_of_stock_tensorflow(found: dict, name: str) -> None:
    operations = set(found[name]["operations"])
    # The operations that read files are inside a function, which the walk must have visited.
    assert {"DecodeImage", "ExtractJpegShape", "Assert", "IgnoreErrorsDataset"} <= operations
    assert found[name]["unknown"] == []
    assert not {o for o in operations if "PyFunc" in o or "HashTable" in o or "Lookup" in o}
    # Nothing is compiled for one machine, nothing is random, and nothing reads a file by its name.
    assert not {o for o in operations if o.startswith(("Xla", "Random", "StatelessRandom"))}
    assert not operations & {"ReadFile", "TFRecordDatasetV2", "TextLineDataset", "Print"}


@models()
def test_card_describes_the_signatures(small_models: Path, name: str) -> None:
    card = json.loads((small_models / name / "1" / cards.CARD).read_text())
    assert card["signatures"]["serving_default"]["inputs"] == {
        "image_bytes": {"dtype": "string", "shape": [None]}
    }
    outputs = card["signatures"]["serving_default"]["outputs"]
    if name == "tiny-autoencoder":
        assert outputs["is_anomaly"] == {"dtype": "bool", "shape": [None]}
    else:
        assert outputs["probabilities"] == {"dtype": "float32", "shape": [None, 3]}
        assert outputs["label"] == {"dtype": "string", "shape": [None]}
    assert card["versions"]["tensorflow"] == tf.__version__
    size = 128 if name == "tiny-autoencoder" else 64
    assert (card["name"], card["version"], card["image_size"]) == (name, 1, size)
