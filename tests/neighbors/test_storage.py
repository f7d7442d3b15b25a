"""Stored KNN pipelines: their predictions, and which files are refused."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fitted_knn import Fitted

from cxr_tf.errors import UserError


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
    """An object whose unpickling creates a file."""

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


def test_wrong_width_is_refused_and_another_scikit_learn_version_warns(
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


def test_export_that_disagrees_with_the_pipeline_is_refused(fitted: Fitted) -> None:
    from cxr_tf.neighbors.storage import check_agreement, load_knn

    stored = fitted.embeddings()
    test = stored["splits"] == "test"
    knn, _ = load_knn(str(fitted.model))
    paths = [str(p) for p in stored["paths"][test]]
    # The embeddings of the wrong images, as a mixed-up preprocessing would give.
    with pytest.raises(RuntimeError, match="disagree on"):
        check_agreement(fitted.model / "1", knn, stored["embeddings"][test][::-1], paths, 16)
