"""An archive contains the predictions of predict.py, bit for bit, once for each path."""

import csv
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

import pyarrow.parquet as pq
from small_models import write_model_with_detector, write_models

from cxr_tf.archive import processes, score_archive, similar_cases, worker
from cxr_tf.archive.engine import Progress
from cxr_tf.archive.plan import Plan, Recipe
from cxr_tf.archive.storage import open_storage
from cxr_tf.archive.worker import Worker, describe
from cxr_tf.config import FitKnn, Predict, ScoreArchive
from cxr_tf.data.image_files import find_images
from cxr_tf.errors import UserError
from cxr_tf.evaluation.predict import predict
from cxr_tf.serving import loading
from cxr_tf.serving.loading import load_served
from cxr_tf.serving.prediction.batch_prediction import BatchPredictions, predict_in_batches


@pytest.fixture(scope="module")
def models(tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_models(tmp_path_factory.mktemp("models"), tiny_backbone, phantoms)
    return write_model_with_detector(root, tiny_backbone, phantoms)


@pytest.fixture(scope="module")
def ward(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 radiographs, three of them unreadable; the last batch has a single image."""
    folder = tmp_path_factory.mktemp("ward")
    for k, file in enumerate(sorted(phantoms.glob("t*/*/*.png"))[:41]):
        content = file.read_bytes()
        if k in (3, 33):
            content = content[: len(content) // 2]
        (folder / f"{k:02d}.png").write_bytes(b"" if k == 20 else content)
    return folder


@functools.cache
def load_once(model: str, **how: str) -> loading.ServedModel:
    return load_served(model, **how)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the workers and describe the model in this process, which has loaded TensorFlow.

    Returns the shards that the workers compute, in order.
    """
    computed: list[int] = []

    def run(settings, shards, workers, make_worker: Callable = Worker):
        worker = make_worker(settings)
        for shard in shards:
            computed.append(shard)
            yield Progress(shard, worker.score(shard), finished=True)

    monkeypatch.setattr(loading, "load_served", load_once)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(processes, "describe_model", describe)
    return computed


def settings(model: Path, ward: Path, out: Path, **changes: object) -> ScoreArchive:
    return ScoreArchive(
        **{
            "images": (str(ward),),
            "model": str(model),
            "out": str(out),
            "runtime": "tensorflow",
            "shard_size": 16,
            "batch_size": 8,
            **changes,
        }
    )


def rows_of(out: Path) -> list[dict]:
    plan = Plan.read(open_storage(str(out)))
    files = [out / f"shards/{k:05d}.parquet" for k in range(plan.shards)]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def compare(
    batches: Iterable[BatchPredictions], rows: list[dict], compared: set[str], tolerance: float
) -> None:
    """Assert that batches of predictions from predict.py equal the archive's rows."""
    for batch in batches:
        for row, reason in batch.reasons.items():
            assert rows[row]["reason"] == reason
            assert {v for k, v in rows[row].items() if k not in ("path", "reason")} == {None}
        for k, row in enumerate(batch.rows):
            assert rows[row]["reason"] is None
            for name, values in batch.outputs.items():
                if name == "classes":
                    continue
                found = rows[row].get(name)
                if name == "probabilities":
                    found = [rows[row][str(c)] for c in batch.outputs["classes"][k]]
                found = np.array(found, values.dtype)
                if tolerance and values.dtype.kind == "f":
                    np.testing.assert_allclose(found, values[k], tolerance, tolerance, err_msg=name)
                else:
                    np.testing.assert_array_equal(found, values[k], name)
                compared.add(name)


@pytest.mark.parametrize(
    ("kind", "signatures"),
    [
        ("tiny", ("serving_default", "embed")),
        ("novel", ("serving_default", "embed")),
        ("tiny-knn", ("serving_default",)),
        ("tiny-autoencoder", ("serving_default",)),
    ],
)
def test_outputs_equal_those_of_predict(
    here: list[int],
    models: Path,
    ward: Path,
    tmp_path: Path,
    kind: str,
    signatures: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    score_archive.score_archive(settings(models / kind, ward, out, signatures=signatures))
    rows = rows_of(out)
    paths = find_images((str(ward),))
    assert [row["path"] for row in rows] == paths
    served = load_once(str(models / kind), engine="tensorflow", precision="float32")
    compared = set()
    for signature in signatures:
        # In the archive's batches, and in others, where some processors sum in another order.
        for batch_size, tolerance in ((8, 0.0), (11, 2e-6)):
            batches = predict_in_batches(served.predictor(signature), paths, batch_size, "nan")
            compare(batches, rows, compared, tolerance)
    assert sum(row["reason"] is not None for row in rows) == 3
    if "embed" in signatures:
        assert {"label", "probabilities", "embedding"} <= compared


def test_predictions_and_embeddings_take_one_pass(models: Path, tmp_path: Path) -> None:
    """One signature has the outputs of both; models of version 0.1 lack it."""
    request = worker.ModelRequest(
        str(models / "novel"), ("serving_default", "embed"), "tensorflow", "float32"
    )
    recipe = Recipe(**worker.describe(request), shard_size=8, batch_size=4)
    [joint] = worker.load_predictors(worker.WorkerSettings(str(tmp_path), ""), recipe)
    image = [worker.phantom_png()] * 2
    separate: dict[str, np.ndarray] = {}
    for name in ("serving_default", "embed"):
        part = dataclasses.replace(recipe, signatures={name: "tensorflow"})
        [predict_part] = worker.load_predictors(worker.WorkerSettings(str(tmp_path), ""), part)
        separate |= predict_part(image)
    outputs = joint(image)
    assert outputs.keys() == separate.keys()
    for name, values in separate.items():
        np.testing.assert_array_equal(outputs[name], values, name)


@pytest.mark.parametrize("kind", ["tiny", "tiny-knn"])
def test_merged_table_equals_that_of_predict(
    here: list[int], models: Path, ward: Path, tmp_path: Path, kind: str
) -> None:
    out, model = tmp_path / "out", models / kind
    score_archive.score_archive(settings(model, ward, out))
    for name in ("all.csv", "all.parquet"):
        score_archive.score_archive(ScoreArchive(out=str(out), merge=str(tmp_path / name)))
    predict(
        Predict(
            model=str(model),
            images=(str(ward),),
            output=str(tmp_path / "predict.csv"),
            engine="tensorflow",
            on_bad_image="nan",
            batch_size=8,
        )
    )
    assert (tmp_path / "all.csv").read_text() == (tmp_path / "predict.csv").read_text()
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == rows_of(out)
    with pytest.raises(UserError, match=r"all.csv exists"):
        score_archive.score_archive(ScoreArchive(out=str(out), merge=str(tmp_path / "all.csv")))
    summary = json.loads((out / "summary.json").read_text())
    with (tmp_path / "predict.csv").open() as file:
        table = list(csv.DictReader(file))
    read = [row for row in table if not row["reason"]]
    assert summary["images"] == 41 and summary["unreadable"] == 3
    assert summary["reasons"] == {"truncated or corrupt image": 2, "empty": 1}
    assert sum(summary["labels"].values()) == 38
    novel = sum(row.get("is_novel") == "true" for row in table)
    assert summary["flags"] == ({"is_novel": novel} if kind == "tiny-knn" else {})
    assert ("remarks" in table[0]) == (kind == "tiny-knn")
    for name, distribution in summary["scores"].items():
        if name not in table[0]:  # the distribution of a neighbour's distance, say
            continue
        values = np.array([float(row[name]) for row in read])
        assert distribution["max"] == pytest.approx(values.max(), abs=1e-7)
        spread = np.ptp(values)
        assert distribution["50 %"] == pytest.approx(
            np.quantile(values, 0.5), abs=0.1 * spread + 1e-6
        )


def test_only_missing_or_new_shards_are_computed(
    here: list[int], models: Path, ward: Path, tmp_path: Path
) -> None:
    computed = here
    names = sorted(ward.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(map(str, names[:20])) + "\n")
    order = settings(models / "tiny", tmp_path / "list.txt", tmp_path / "out")
    score_archive.score_archive(dataclasses.replace(order, only="2/2"))
    assert computed == [1]
    score_archive.score_archive(ScoreArchive(out=order.out, runtime="tensorflow"))
    assert computed == [1, 0]
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)) + "\n")
    score_archive.score_archive(order)
    assert sorted(computed) == [0, 1, 2, 3]
    (tmp_path / "out/shards/00002.parquet").unlink()
    score_archive.score_archive(order)
    assert computed[-1] == 2 and len(computed) == 5
    # Cut into batches at other places, the numbers are the same but for their last bits.
    other = settings(models / "tiny", ward, tmp_path / "other", batch_size=32, shard_size=64)
    score_archive.score_archive(other)
    for row, expected in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "other"), strict=True):
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_mistakes_are_reported_and_nothing_is_written(
    here: list[int], models: Path, ward: Path, tmp_path: Path
) -> None:
    order = settings(models / "tiny", ward, tmp_path / "out")
    for changes, message in (
        ({"images": ()}, "contains no plan yet: give --images as well"),
        ({"model": ""}, "contains no plan yet: give --model and --images"),
        ({"model": str(tmp_path / "nowhere")}, "no such model"),
        ({"signatures": ("occlusion",)}, "which do not fit into a table"),
        ({"signatures": ("tensor",)}, "does not take image files"),
        ({"signatures": ("embed", "embed")}, "name each once"),
        ({"only": "3/2"}, "--only 3/2"),
        ({"status": True}, "not an archive"),
        ({"merge": "x.parquet"}, "not an archive"),
        ({"runtime_precision": "int8"}, "--runtime-precision int8 .* --runtime openvino"),
    ):
        with pytest.raises(UserError, match=message):
            score_archive.score_archive(dataclasses.replace(order, **changes))
    assert not (tmp_path / "out").exists()
    score_archive.score_archive(order)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    for changes, message in (
        ({"model": str(models / "tiny-knn")}, r"was started with model .*tiny/1 .*not .*tiny-knn"),
        ({"signatures": ("serving_default", "embed")}, "signatures serving_default on tensorflow,"),
        ({"batch_size": 16}, "batch size 8, not 16"),
    ):
        with pytest.raises(UserError, match=message):
            score_archive.score_archive(dataclasses.replace(order, **changes))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_worker_refuses_a_model_other_than_the_planned_one(
    here: list[int], models: Path, ward: Path, tmp_path: Path
) -> None:
    order = settings(models / "tiny", ward, tmp_path / "out")
    score_archive.score_archive(order)
    text = (tmp_path / "out/plan.json").read_text()
    (tmp_path / "out/plan.json").write_text(text.replace("tiny/1", "tiny-knn/1"))
    (tmp_path / "out/shards/00001.parquet").unlink()
    with pytest.raises(UserError, match="is not the model of the archive: on this machine"):
        score_archive.score_archive(ScoreArchive(out=order.out))


def test_status_counts_finished_shards(
    here: list[int], models: Path, ward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cxr_tf")
    order = settings(models / "tiny", ward, tmp_path / "out")
    score_archive.score_archive(dataclasses.replace(order, only="1/2"))
    caplog.clear()
    score_archive.score_archive(ScoreArchive(out=order.out, status=True))
    assert "shards:  2 of 3" in caplog.text and "images:  25 of 41, 61.0 %" in caplog.text
    with pytest.raises(UserError, match=r"1 of 3 shards are missing, the first is shards/00001"):
        score_archive.score_archive(ScoreArchive(out=order.out, merge=str(tmp_path / "x.csv")))


def test_radiograph_in_the_archive_has_distance_0_to_itself(
    here: list[int], models: Path, ward: Path, tmp_path: Path
) -> None:
    order = settings(models / "tiny", ward, tmp_path / "out", signatures=("embed",))
    score_archive.score_archive(order)
    output = tmp_path / "similar.csv"
    similar_cases.fit_knn(
        FitKnn(
            archive=order.out,
            query=(str(ward / "00.png"), str(ward / "40.png")),
            neighbors=38,
            output=str(output),
        )
    )
    with output.open() as file:
        found = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in found] == [*range(1, 39)] * 2
    assert len({row["path"] for row in found}) == 38  # all that could be read
    own = [row for row in found if row["path"] == row["query"]]
    assert len(own) == 2 and all(float(row["distance"]) < 1e-5 for row in own)
    assert float(found[37]["distance"]) > 1e-5
