"""Exported models on the C++ runtime, in one process that never imports TensorFlow's package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import MODELS

from cxr_tf.errors import UserError
from cxr_tf.serving.loading import load_served
from cxr_tf.serving.prediction.client import as_text
from cxr_tf.serving.runtimes import cpp_runtime

PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from cxr_tf.serving.runtimes.cpp_runtime import RuntimeStatusError, load_session, warm_up_requests

root, images, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
files = [Path(p).read_bytes() for p in images]


def as_json(outputs):
    return {k: v.astype(str).tolist() if v.dtype == object else v.tolist()
            for k, v in outputs.items()}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


found = {}
for name in sys.argv[4:]:
    folder = Path(root) / name / "1"
    with load_session(folder) as session:
        requests = {
            signature: {"image_bytes": files}
            if "image_bytes" in definition.inputs
            else {"images": np.load(Path(out).with_suffix(".npy"))}
            for signature, definition in session.signatures.items()
        }
        answer = {
            "outputs": {s: as_json(session.run(s, inputs)) for s, inputs in requests.items()},
            "warm_up": {s: as_json(session.run(s, i)) for s, i in warm_up_requests(folder)},
        }
        try:
            session.run("serving_default", {"image_bytes": [files[0], b"text", b""]})
        except RuntimeStatusError as error:
            answer["refusal"] = [error.status, error.message]

        def request(row):
            return session.run("serving_default", {"image_bytes": files[row % 3 : row % 3 + 1]})

        rows = range(48)
        with ThreadPoolExecutor(8) as pool:
            concurrent = list(pool.map(request, rows))
        answer["threads_agree"] = all(
            np.array_equal(a[k], b[k]) for a, b in zip(concurrent, map(request, rows)) for k in a
        )
        if name == "tiny":
            for row in range(200):
                request(row)
            before = resident()
            for row in range(2000):
                request(row)
            answer["growth"] = resident() - before
    found[name] = answer
found["imported"] = [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "keras")]
Path(out).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[str]:
    return [str(p) for p in sorted((phantoms / "test").rglob("*.png"))[:3]]


@pytest.fixture(scope="module")
def pixels(images: list[str]) -> np.ndarray:
    """Inputs for the signature `tensor`: float32 [N, 64, 64, 3] in 0..255."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(p).convert("RGB"), np.float32) for p in images])


@pytest.fixture(scope="module")
def found(small_models: Path, images: list[str], pixels: np.ndarray, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("cpp") / "out.json"
    np.save(out.with_suffix(".npy"), pixels)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small_models), json.dumps(images), str(out), *MODELS],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def models() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", MODELS)


def test_the_process_has_no_tensorflow_package(found: dict) -> None:
    # The modules of its protocol buffers, which protobuf generated, and nothing else.
    assert found["imported"] and all("tensorflow." in m for m in found["imported"])
    assert not [m for m in found["imported"] if m.startswith(("tensorflow.python", "keras"))]
    generated = {m for m in found["imported"] if m.endswith("_pb2")}
    assert all(any(g.startswith(m) for g in generated) for m in found["imported"])


@models()
def test_every_output_equals_that_of_tensorflow(
    found: dict, name: str, small_models: Path, images: list[str], pixels: np.ndarray
) -> None:
    served = load_served(str(small_models / name))
    assert set(found[name]["outputs"]) == set(served.loaded.signatures)
    for signature, outputs in found[name]["outputs"].items():
        if signature == "tensor":
            expected = {k: v.numpy() for k, v in served.signature("tensor")(images=pixels).items()}
            expected = {k: as_text(v) for k, v in expected.items()}
        else:
            expected = served.predictor(signature)(served.decode(images))
        assert outputs.keys() == expected.keys()
        for key, values in expected.items():
            if values.dtype == object:
                assert outputs[key] == values.tolist()
            else:
                np.testing.assert_allclose(outputs[key], values, rtol=1e-5, atol=1e-6)


@models()
def test_a_bad_image_is_an_invalid_argument_with_its_position(found: dict, name: str) -> None:
    status, message = found[name]["refusal"]
    assert status == "INVALID_ARGUMENT"
    assert "image_bytes[1]: neither JPEG nor PNG (4 bytes)" in message
    assert "image_bytes[2]: empty (0 bytes)" in message and "image_bytes[0]" not in message


@models()
def test_each_warm_up_request_runs(found: dict, name: str) -> None:
    assert found[name]["warm_up"].keys() == found[name]["outputs"].keys()
    for signature, outputs in found[name]["warm_up"].items():
        assert outputs.keys() == found[name]["outputs"][signature].keys()
        assert all(len(values) == 1 for values in outputs.values())


@models()
def test_eight_threads_on_one_session_compute_the_same_outputs(found: dict, name: str) -> None:
    assert found[name]["threads_agree"]


def test_memory_stays_flat_over_2000_requests(found: dict) -> None:
    # A request's image alone has 4 kB: had each been kept, they would be 8 MB.
    assert found["tiny"]["growth"] < 2e6


def test_a_folder_without_a_saved_model_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded: Could not find SavedModel"):
        cpp_runtime.load_session(tmp_path)


def test_records_equal_those_that_tensorflow_reads(small_models: Path) -> None:
    import tensorflow as tf

    path = small_models / "tiny" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    expected = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert list(cpp_runtime.read_records(path)) == expected
