"""Tests of the benchmarks: reports and comparisons of results; nothing is timed."""

import functools
import json
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import openTSNE
import pytest
import tensorflow as tf
from sklearn import model_selection

from benchmarks import benchmark, bounds, embeddings, material, measurement, tables, training
from benchmarks.config import Benchmark
from benchmarks.measurement import Cost, Memory, Results, Row, Skipped, Timing
from cxr_tf.errors import UserError
from cxr_tf.neighbors import projection

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def row(ours: list[float], theirs: list[float], **changed) -> Row:
    fields = {
        "job": "maps", "alternative": "other", "at_least": 3.0, "ours": Timing(ours, 1.0),
        "theirs": Timing(theirs, 2.0), "unit": "images/s", "count": 10, "same": True,
        "check": "equal",
    }  # fmt: skip
    return Row(**{**fields, **changed})


def test_ratio_is_the_speed_up_of_each_round() -> None:
    # The machine is slower in the third round, for both: no ratio changes.
    found = row([1.0, 2.0, 10.0], [4.0, 6.0, 50.0]).record()
    assert [found[k] for k in ("ratio", "ratio_lowest", "ratio_highest")] == [4, 3, 5]
    assert found["reached"]
    assert not row([1.0], [2.9]).record()["reached"]


def test_slope_is_the_exponent_of_the_size() -> None:
    sizes = [500, 1000, 2000, 4000]
    assert Cost("t", "points", sizes, [3e-6 * n**2 for n in sizes]).slope == pytest.approx(2)
    assert Cost("t", "points", sizes, [7.0] * 4).slope == pytest.approx(0)


def test_table_marks_missed_targets_and_differing_results() -> None:
    about = measurement.machine()
    rows = [
        row([2.0], [8.0]),
        row([2.0], [3.0], check="equal to 1e-3"),
        row([2.0], [9.0], same=False, check="they differ by 7"),
        Skipped("maps", "third", "not installed"),
    ]
    text = tables.table(rows, about)
    first, second, third = [x for x in text.splitlines() if x.startswith("| maps")]
    assert "| 5 images/s | 1.25 images/s | 4.00 (4.00 to 4.00) | 3 | equal | 1, 2 |" in first
    assert "1.50" in second and "missed" in second and "missed" not in first
    assert "NOT THE SAME: they differ by 7" in third and "NOT" not in second
    assert "left out: maps, third: not installed" in text
    assert f"{about['cores']} cores" in text.splitlines()[0]


def test_bounds_of_machine_networks_and_files(tmp_path) -> None:
    settings = Benchmark(image_size=64, images=16, backbones=("alexnet", "vgg16"), repeats=1)
    found = list(bounds.bounds(settings, tmp_path, side=64, read=2**16))
    values = {(x.job, x.of): x.value for x in found}
    # Of torchvision's AlexNet at 64 pixels by hand: maps of 15, 7 and 3 pixels a side, a classifier
    # of 9,216-4,096-4,096, and two classes.
    by_hand = 15**2 * 11**2 * 3 * 64 + 7**2 * 25 * 64 * 192
    by_hand += 3**2 * 9 * (192 * 384 + 384 * 256 + 256 * 256)
    by_hand += 9216 * 4096 + 4096 * 4096 + 4096 * 2
    assert values["one image through alexnet at 64", "multiplications"] == by_hand / 1e9
    speed, reading = (v for (job, of), v in values.items() if of == "float32")
    slowest = values["one image through alexnet at 64", "at that speed, float32"]
    assert slowest == pytest.approx(1000 * by_hand / 1e9 / speed)
    # Its kernels and biases, by hand.
    parameters = 11**2 * 3 * 64 + 25 * 64 * 192
    parameters += 9 * (192 * 384 + 384 * 256 + 256 * 256) + 64 + 192 + 384 + 256 + 256
    parameters += 9216 * 4096 + 4096 * 4096 + 4096 * 2 + 2 * 4096 + 2
    assert values["one image through alexnet at 64", "weights, float32"] == 4e-6 * parameters
    slowest = values["one image through alexnet at 64", "weights read from memory"]
    assert slowest == pytest.approx(4e-6 * parameters / reading)
    shares = [v for (job, _), v in values.items() if job.startswith("multiplications")]
    assert len(shares) == 2 and all(0 < v <= 100 for v in shares)
    assert values["JPEG of 1300 x 900 to 64, a thread", "all of ours"] > 0
    text = tables.table(found, measurement.machine())
    assert "| one image through alexnet at 64 | multiplications | 0.0941 billion |" in text


def test_bounds_without_a_jpeg_skip_the_decoder(tmp_path) -> None:
    settings = Benchmark(backbones=(), repeats=1, images=16, data="pngs")
    drawn = tmp_path / "radiographs-16"  # there since an earlier job
    drawn.mkdir()

    def last() -> Results:
        return list(bounds.bounds(settings, tmp_path, side=64, read=2**16))[-1]

    assert isinstance(last(), Skipped)
    data = tf.io.encode_jpeg(np.zeros((32, 32, 1), np.uint8)).numpy()
    (drawn / "1.JPG").write_bytes(data)
    assert last().job.startswith("JPEG of 32 x 32 to 224")


def test_memory_and_costs_have_separate_tables() -> None:
    found = [
        Memory("training", "ours", 2345.6, "MB", 3000),
        Memory("training", "Keras", 4000.0, "MB"),
        Memory("input", "ours", 9.0, "kB an image", 4),
        Cost("t-SNE", "points", [200, 400], [1.0, 4.0]),
    ]
    text = tables.table(found, measurement.machine())
    assert "| training | ours | 2,346 MB | at most 3,000 |" in text
    assert "| training | Keras | 4,000 MB |  |" in text
    assert "| input | ours | 9 kB an image | at most 4, missed |" in text
    assert "| seconds, by size | 200 | 400 | slope |" in text
    assert "| t-SNE (points) | 1 | 4 | 2.00 |" in text
    assert "times as fast" not in text


def test_implementations_alternate_and_the_warm_up_is_not_counted() -> None:
    called: list[str] = []

    def ours() -> None:
        called.append("a")

    def theirs() -> float:
        called.append("b")
        return 100.0 + called.count("b")

    timings = measurement.in_turn({"ours": ours, "theirs": theirs}, 2)
    assert "".join(called) == "ba" + "ab" + "ba"
    # Returned seconds are used unchanged; the first ones are those of the warm-up.
    assert timings["theirs"].seconds == [102.0, 103.0]
    assert len(timings["ours"].seconds) == 2


def test_time_by_size_is_the_fastest_call_after_a_warm_up() -> None:
    called: list[int] = []

    def prepare(count: int):
        def way() -> float:
            called.append(count)
            return count / 10 + (5.0 if called.count(count) % 2 else 0.0)

        return way

    cost = measurement.by_size(prepare, "job", "images", [10, 20], 2)
    assert called == [10, 10, 10, 20, 20]
    assert cost.seconds == [1.0, 2.0] and cost.sizes == [10, 20]


def _peak_with(megabytes: int) -> float:
    held = np.ones(megabytes * 2**20, np.uint8)
    peak = measurement.memory_of_process("VmHWM")
    assert held.all()
    return peak


def test_the_peak_of_a_new_process_is_its_own() -> None:
    if not measurement.memory_of_process("VmHWM"):
        pytest.skip("this system does not report the peak memory of a process")
    # It must not include what this process holds, or once held.
    held = _peak_with(600)
    with_little, with_much = (measurement.in_new_process(_peak_with, n) for n in (1, 301))
    assert with_much - with_little == pytest.approx(300, abs=20)
    assert with_much < held


def test_one_job_from_the_command_line_to_the_file(tmp_path, monkeypatch, capsys) -> None:
    few = functools.partial(embeddings.knn, neighbours=(1, 7))
    monkeypatch.setitem(benchmark.JOBS, "knn", few)
    given = ["knn", "--points", "200", "--width", "16", "--repeats", "1", "--name", "one"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given, "--logs", str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    file = tmp_path / "benchmark" / "one.json"
    written = json.loads(file.read_text())
    (found,) = written["rows"]
    assert found["same"], found["check"]
    assert len(found["ours"]["seconds"]) == len(found["theirs"]["seconds"]) == 1
    assert found["ratio"] == found["theirs"]["seconds"][0] / found["ours"]["seconds"][0]
    assert written["machine"]["packages"]["tensorflow"][0].isdigit()
    assert written["finished"]
    assert written["load_before"] >= 0 and written["settings"]["points"] == 200
    assert "| KNN with choice of 24 settings, 200 x 16 |" in out

    with pytest.raises(UserError, match="exists"):
        benchmark.benchmark(Benchmark(jobs=("knn",), name="one", logs=str(tmp_path)))


def test_interrupted_run_keeps_its_results(tmp_path, monkeypatch) -> None:
    def interrupted(settings: Benchmark, place: Path) -> Results:
        yield row([1.0], [4.0])
        yield Memory("training", "ours", 3500, "MB", 3000)
        yield Cost("t-SNE", "points", [200, 400], [1.0, 2.0])
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark.JOBS, "knn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(Benchmark(jobs=("knn",), name="cut", logs=str(tmp_path)))
    written = json.loads((tmp_path / "benchmark" / "cut.json").read_text())
    assert written["rows"][0]["ratio"] == 4 and not written["finished"]
    assert written["memory"][0]["reached"] is False
    assert written["costs"][0]["slope"] == pytest.approx(1)


def test_search_with_other_results_is_marked_as_different(tmp_path, monkeypatch) -> None:
    class Other(model_selection.GridSearchCV):
        def fit(self, *given, **how):
            super().fit(*given, **how)
            self.cv_results_["mean_test_score"] = self.cv_results_["mean_test_score"] - 0.1
            return self

    settings = Benchmark(points=200, width=16, repeats=1)
    (found,) = embeddings.knn(settings, tmp_path, neighbours=(1,))
    assert isinstance(found, Row) and found.same, found.check
    monkeypatch.setattr(model_selection, "GridSearchCV", Other)
    (found,) = embeddings.knn(settings, tmp_path, neighbours=(1,))
    assert isinstance(found, Row) and not found.same


def test_untrustworthy_map_is_marked_as_different(tmp_path, monkeypatch) -> None:
    class Shuffled(openTSNE.TSNE):
        def fit(self, points):
            return super().fit(points)[::-1]

    settings = Benchmark(points=200, width=16, repeats=1)
    noise = 0.03  # of 200 points it is larger
    (found,) = embeddings.tsne(settings, tmp_path, noise)
    assert isinstance(found, Row) and found.same, found.check
    monkeypatch.setattr(projection, "TSNE", Shuffled)
    (found,) = embeddings.tsne(settings, tmp_path, noise)
    assert isinstance(found, Row) and not found.same, found.check


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["speed"], "unknown job 'speed'; known: bounds, startup, knn"),
        (["knn", "--points", "3"], "--points must be at least 200, not 3"),
        (["scaling", "--sizes", "100", "400"], "--sizes must be at least 200, not 100"),
        (["scaling", "--sizes", "400", "400"], "each larger than the one before"),
        (["knn", "--name", "a/b"], "--name 'a/b'"),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(
    given, says, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given, "--logs", str(tmp_path / "logs")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_phantoms_of_original_size_in_both_splits(tmp_path) -> None:
    from PIL import Image

    root = material.radiographs(Benchmark(images=16), tmp_path)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpeg"))
    assert len(files) == 16
    assert {f.rsplit("/", 1)[0] for f in files} == {
        f"{s}/{c}" for s in ("train", "val") for c in ("NORMAL", "PNEUMONIA")
    }
    with Image.open(root / files[0]) as image:
        assert image.size == material.ORIGINAL_SIZE and image.mode == "L"
        assert np.asarray(image).std() > 20


def test_small_files_are_all_different_and_kept(tmp_path) -> None:
    paths = [Path(p) for p in material.small_files(tmp_path, 40, seed=0)]
    contents = [p.read_bytes() for p in paths]
    assert len(set(contents)) == 40
    assert {p.parent.name for p in paths} == {"NORMAL", "PNEUMONIA"}
    paths[0].write_bytes(b"kept")
    material.small_files(tmp_path, 41, seed=0)
    assert paths[0].read_bytes() == b"kept" and len(list(tmp_path.rglob("*.jpeg"))) == 41


def test_norm_statistics_give_features_of_mean_0_and_spread_1() -> None:
    images = keras.Input((8, 8, 3))
    scaled = keras.layers.BatchNormalization(trainable=False)(images * 50 + 20)
    model = keras.Model(images, scaled)
    batch = np.random.default_rng(0).normal(3, 2, (16, 8, 8, 3)).astype(np.float32)
    material.set_norm_statistics(model, batch)
    features = np.asarray(model(batch, training=False))
    assert features.mean((0, 1, 2)) == pytest.approx(0, abs=1e-3)
    assert features.std((0, 1, 2)) == pytest.approx(1, abs=1e-3)
    (norm,) = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert not norm.trainable and norm.momentum == 0.99


@pytest.fixture
def fine_tuned(tiny_backbone: str, tmp_path):
    """Rows of the fine-tuning job on a small network; given is the rate of theirs and ours."""

    def measured(rate: float) -> list[Row]:
        settings = Benchmark(backbones=(tiny_backbone,), image_size=64, repeats=1)
        return [x for x in training.finetuning(settings, tmp_path, rate) if isinstance(x, Row)]

    return measured


def test_both_fine_tunings_learn_from_the_same_weights(fine_tuned) -> None:
    for found in fine_tuned(1e-2):
        assert found.same, found.check
        assert found.unit == "images/s" and len(found.ours.seconds) == 1


def test_training_that_learns_nothing_is_marked_as_different(fine_tuned) -> None:
    for found in fine_tuned(1e-9):
        assert not found.same, found.check
