"""Tests of the study: repeated steps, report, and comparison.

One study runs for real, on phantoms, with a network of two layers in place of each backbone.
"""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_study import BACKBONES, run_tiny_study

from cxr_tf.config import CompareBackbones, RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run

TRAINED = [f"binary-{b}" for b in BACKBONES]
ALL_DONE = {"data", *TRAINED, "binary", "binary-knn", "autoencoder", "heatmaps", "served"}


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> RunStudy:
    return run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")


@pytest.fixture
def settings(finished_study: RunStudy, tmp_path: Path) -> RunStudy:
    """A copy of the finished study, which a test may change."""
    root = Path(finished_study.logs).parent
    shutil.copytree(root, tmp_path / "study")
    return dataclasses.replace(
        finished_study,
        data=str(tmp_path / "study" / "phantoms"),
        logs=str(tmp_path / "study" / "logs"),
        saved_models=str(tmp_path / "study" / "saved_models"),
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Jobs copy a finished run of the same kind instead of working; their names in order."""
    from cxr_tf.study import plan
    from cxr_tf.study import run_study as study_run_study
    from cxr_tf.study import steps as study_steps

    names: list[str] = []

    def fake(job: str, sample: Callable[[Any], str]) -> Callable[..., Any]:
        def work(settings: Any, *_: Any) -> None:
            names.append(settings.name)
            folder = Path(settings.logs) / job
            shutil.copytree(folder / sample(settings), folder / settings.name)
            if job in ("classifier", "knn", "autoencoder"):
                (Path(settings.saved_models) / settings.name / "1").mkdir(parents=True)
            if job == "compare":
                copied = Run(folder / settings.name)
                metrics = json.dumps(copied.metrics)
                for old, new in zip(TRAINED, settings.runs, strict=True):
                    metrics = metrics.replace(f'"tiny-{old}"', json.dumps(Path(new).name))
                copied.write_metrics(json.loads(metrics))

        return work

    jobs = (
        (plan.train_classifier, "train_classifier", "classifier",
         lambda s: f"tiny-binary-{s.backbone}"),
        (plan.compare_backbones, "compare_backbones", "compare", lambda s: "tiny-binary"),
        (plan.fit_knn, "fit_knn", "knn", lambda s: "tiny-binary-knn"),
        (plan.train_autoencoder, "train_autoencoder", "autoencoder",
         lambda s: "tiny-autoencoder"),
        (plan.explain, "explain", "explain", lambda s: "tiny-heatmaps"),
        (plan.check_served, "check_served", "served", lambda s: "tiny-served"),
    )  # fmt: skip
    for module, function, job, sample in jobs:
        monkeypatch.setattr(module, function, fake(job, sample))
    flat = dict.fromkeys([*BACKBONES, "autoencoder"], 0.001)
    monkeypatch.setattr(study_run_study, "measure", lambda *_: study_steps.Speed(flat, flat))
    # It collects the garbage of all that pytest holds, each time.
    monkeypatch.setattr(study_run_study.keras.backend, "clear_session", lambda: None)
    monkeypatch.setattr(study_run_study, "write_report", lambda folder: names.append("report"))
    yield names


def directory(settings: RunStudy) -> Path:
    return Path(settings.logs) / "study" / settings.name


def runs_of(settings: RunStudy) -> dict[str, str]:
    steps = json.loads((directory(settings) / "metrics.json").read_text())["steps"]
    return {s["name"]: s["run"] for s in steps if "run" in s}


def page_of(settings: RunStudy) -> str:
    return (directory(settings) / "report.html").read_text()


# ---------------------------------------------------------------------- what is kept


def test_every_job_ran_and_exported(finished_study: RunStudy) -> None:
    runs = runs_of(finished_study)
    assert set(runs) == ALL_DONE
    for run in runs.values():
        assert Run(Path(finished_study.logs) / run).finished
    exported = sorted(p.parent.name for p in Path(finished_study.saved_models).glob("*/1"))
    assert exported == sorted(
        [f"tiny-{t}" for t in TRAINED] + ["tiny-binary-knn", "tiny-autoencoder"]
    )
    # Neighbours and heatmaps are of the classifier that validation chose.
    chosen = Run(Path(finished_study.logs) / runs["binary"]).metrics["chosen"]
    for step in ("binary-knn", "heatmaps"):
        config = Run(Path(finished_study.logs) / runs[step]).config
        assert Path(config["settings"]["classifier"]).name == chosen


def test_exported_models_are_verified(finished_study: RunStudy) -> None:
    checked = Run(Path(finished_study.logs) / "served/tiny-served").metrics
    assert checked["agreed"] is True
    assert [m["kind"] for m in checked["models"]] == ["classifier", "knn", "autoencoder"]
    page = " ".join(Page(page_of(finished_study)).words.split())
    assert "The exported models reproduce the evaluated predictions." in page
    for model in checked["models"]:
        run = Run(Path(model["run"]))
        assert model["images"] == run.metrics["test"]["images"] > 10
        assert model["equal"] == model["labels_equal"] == model["images"]
        assert model["largest_difference"] < 1e-4
        assert f"{model['saved_model']}{model['equal']} of {model['images']}" in page


def test_repeated_study_only_rewrites_the_report(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    before = runs_of(settings)
    seconds = json.loads((directory(settings) / "metrics.json").read_text())["steps"]
    run_study(settings)
    assert called == ["report"] and runs_of(settings) == before
    assert json.loads((directory(settings) / "metrics.json").read_text())["steps"] == seconds


def test_changed_setting_repeats_dependent_steps(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    before = runs_of(settings)
    run_study(dataclasses.replace(settings, autoencoder_epochs=2))
    assert called == ["tiny-autoencoder-2", "tiny-served-2", "report"]
    after = runs_of(settings)
    assert {s for s in after if after[s] != before[s]} == {"autoencoder", "served"}
    # The former run is kept, and used again if the setting is changed back.
    called.clear()
    run_study(settings)
    assert called == ["report"] and runs_of(settings) == before


@pytest.mark.parametrize("changed", BACKBONES)
def test_changed_weights_retrain_one_backbone(
    settings: RunStudy, called: list[str], changed: str
) -> None:
    from cxr_tf.study.run_study import run_study

    before = runs_of(settings)
    chosen = Run(Path(settings.logs) / before["binary"]).metrics["chosen"]
    weights = Path(settings.logs) / "weights.h5"  # where those of our own runs are
    weights.write_bytes(b"first")
    other = dataclasses.replace(settings, **{f"{changed}_weights": str(weights)})
    expected = [f"tiny-binary-{changed}-2", "tiny-binary-2"]
    if chosen == f"tiny-binary-{changed}":
        expected += ["tiny-binary-knn-2", "tiny-heatmaps-2", "tiny-served-2"]
    run_study(other)
    assert called == [*expected, "report"]
    # The same name with other content are other weights.
    called.clear()
    weights.write_bytes(b"second")
    run_study(other)
    assert called[0] == f"tiny-binary-{changed}-3"


def test_changed_data_repeat_all_steps(settings: RunStudy, called: list[str]) -> None:
    from PIL import Image

    from cxr_tf.study.run_study import run_study

    before = runs_of(settings)
    one = min(Path(settings.data).glob("train/NORMAL/*.png"))
    Image.open(one).point(lambda v: 255 - v).save(one)
    run_study(settings)
    after = runs_of(settings)
    assert all(after[s] == f"{before[s]}-2" for s in ALL_DONE)


def test_moved_data_repeat_nothing(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    moved = Path(settings.data).rename(Path(settings.data).with_name("elsewhere"))
    run_study(dataclasses.replace(settings, data=str(moved)))
    assert called == ["report"]


def test_finished_runs_are_compared_without_their_data(
    settings: RunStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.classification.compare_backbones import compare_backbones

    shutil.rmtree(settings.data)
    monkeypatch.chdir(tmp_path)
    trained = tuple(f"{settings.logs}/classifier/tiny-binary-{b}" for b in BACKBONES)
    before = Run(Path(settings.logs) / "compare/tiny-binary")
    after = compare_backbones(
        CompareBackbones(runs=trained, name="later", bootstrap_samples=20, logs=settings.logs)
    )
    assert after.metrics["chosen"] == before.metrics["chosen"]
    for key in ("data_fingerprint", "data_is_phantom", "images"):
        assert after.config[key] == before.config[key]
    assert after.config["settings"]["data"] == before.config["settings"]["data"]
    assert not (tmp_path / "data").exists()  # no phantoms in place of missing data
    # The record says how they were trained, and flags of training that say otherwise are refused.
    recorded = after.config["settings"]
    assert (recorded["epochs"], recorded["image_size"]) == (1, 64)
    assert recorded["vgg16_weights"] == "none"
    with pytest.raises(UserError, match="--epochs 7 is for training"):
        compare_backbones(
            CompareBackbones(runs=trained, name="other", epochs=7, logs=settings.logs)
        )


def test_locked_study_is_refused(
    settings: RunStudy, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl", reason="no such locks here")
    from cxr_tf.study import run_study as study_run_study

    code = (
        "import sys; from cxr_tf import files; from pathlib import Path\n"
        "files.acquire_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    monkeypatch.setattr(study_run_study, "measure", lambda *_: pytest.fail("the study has started"))
    with subprocess.Popen(
        [sys.executable, "-c", code, directory(settings)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process is working on"):
            study_run_study.run_study(settings)
        other.stdin.close()
    assert called == []


def test_missing_export_repeats_its_step(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    shutil.rmtree(Path(settings.saved_models) / "tiny-autoencoder")
    run_study(settings)
    assert called == ["tiny-autoencoder-2", "tiny-served-2", "report"]
    called.clear()
    elsewhere = dataclasses.replace(settings, saved_models=str(Path(settings.data) / "elsewhere"))
    run_study(elsewhere)
    exported = {Path(p).name for p in Path(elsewhere.saved_models).iterdir()}
    steps = [step for step in runs_of(elsewhere) if step in (*TRAINED, "binary-knn", "autoencoder")]
    assert exported == {Path(runs_of(elsewhere)[step]).name for step in steps}
    called.clear()
    run_study(elsewhere)
    assert called == ["report"]


def test_interrupted_study_resumes_the_same_run(
    settings: RunStudy, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxr_tf.study import compare_studies as study_compare_studies
    from cxr_tf.study import plan
    from cxr_tf.study import run_study as study_run_study

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    other = dataclasses.replace(settings, autoencoder_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(plan.train_autoencoder, "train_autoencoder", stop)
        with pytest.raises(KeyboardInterrupt):
            study_run_study.run_study(other)
    with pytest.raises(UserError, match="not finished"):
        study_compare_studies.open_study(settings.logs, "tiny")
    known = json.loads((directory(settings) / "study.json").read_text())["runs"].values()
    assert [k["run"] for k in known if k["step"] == "autoencoder"][1:] == [
        "autoencoder/tiny-autoencoder-2"
    ]
    study_run_study.run_study(other)
    assert called == ["tiny-autoencoder-2", "tiny-served-2", "report"]


def test_unsupported_task_is_skipped_with_a_reason(
    finished_study: RunStudy,
) -> None:
    steps = json.loads((directory(finished_study) / "metrics.json").read_text())["steps"]
    skipped = {s["name"]: s["skipped"] for s in steps if s.get("skipped")}
    assert set(skipped) == {f"three-class-{b}" for b in BACKBONES} | {"three-class"}
    assert "neither bacterial nor viral" in skipped["three-class"]
    assert "--task" not in skipped["three-class"]
    assert skipped["three-class"] in Page(page_of(finished_study)).words


def mistakes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "no such folder", {"data": "nowhere"}
    yield "letters, digits", {"name": "a/b"}
    yield "longer than", {"name": "a" * 61}
    yield "at least 64", {"image_size": 32}
    yield "--autoencoder-epochs", {"autoencoder_epochs": 0}
    yield "--batch-size", {"batch_size": 0}
    yield "head alone", {"epochs": 0}


@pytest.mark.parametrize(
    "message, changed", mistakes(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_study_user_error_writes_nothing(
    settings: RunStudy, message: str, changed: dict[str, Any]
) -> None:
    from cxr_tf.study.run_study import run_study

    before = sorted(Path(settings.logs).parent.rglob("*"))
    with pytest.raises(UserError, match=message):
        run_study(dataclasses.replace(settings, **{"name": "other"} | changed))
    assert sorted(Path(settings.logs).parent.rglob("*")) == before


# ---------------------------------------------------------------------- the report


class Page(HTMLParser):
    """Start tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_report_shows_the_metrics(finished_study: RunStudy) -> None:
    page = Page(page_of(finished_study))
    runs = {n: Run(Path(finished_study.logs) / r) for n, r in runs_of(finished_study).items()}
    shown = ("auroc", "accuracy", "recall", "specificity", "f1")
    for step in [*TRAINED, "binary-knn", "autoencoder"]:
        table = runs[step].metrics["test"]
        for metric in shown:
            low, high = table["ci95"][metric]
            assert f"{table[metric]:.3f} ({low:.3f} to {high:.3f})" in page.words, (step, metric)
    for test in runs["binary"].metrics["paired_tests"].values():
        low, high = test["auroc_difference_ci95"]
        assert f"{test['auroc_difference']:+.3f} ({low:+.3f} to {high:+.3f})" in page.words
    assert runs["data"].metrics["images"] == 90 and "90 phantoms" in page.words


def test_report_depends_on_metrics_only(settings: RunStudy) -> None:
    from cxr_tf.study.report import write_report

    file = Path(settings.logs) / "classifier/tiny-binary-vgg16/metrics.json"
    compared = Path(settings.logs) / "compare/tiny-binary/metrics.json"
    metrics = json.loads(compared.read_text())
    metrics["models"]["tiny-binary-vgg16"]["test"]["auroc"] = 0.123456
    compared.write_text(json.dumps(metrics))
    file.with_name("predictions-test.csv").unlink()  # no number is taken from there
    write_report(directory(settings))
    assert "0.123 (" in Page(page_of(settings)).words


def test_report_does_not_claim_a_split_by_unknown_patients(settings: RunStudy) -> None:
    from cxr_tf.study.report import write_report

    write_report(directory(settings))
    assert "by patient: no patient appears in more than one" in page_of(settings)
    file = Path(settings.logs) / "data/tiny-data/metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"without_patient": 5}))
    write_report(directory(settings))
    assert "no patient" not in page_of(settings)


def test_report_is_self_contained(finished_study: RunStudy) -> None:
    page = Page(page_of(finished_study))
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert tag != "link"
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy and "default-src 'none'" in policy[0]
    assert not re.search(r"url\((?!\$\{data)", page_of(finished_study))
    anchors = {a["href"] for t, a in page.tags if t == "a"}
    assert {f"#{a['id']}" for _, a in page.tags if a.get("id")} >= anchors


def test_report_has_alt_texts_and_captions(finished_study: RunStudy) -> None:
    page = Page(page_of(finished_study))
    pictures = [a["alt"] for t, a in page.tags if t == "img" and a["src"] != "data:,"]
    assert len(pictures) > 20 and all(alt and len(alt) > 20 for alt in pictures)
    tags = [t for t, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 5


def test_report_names_phantoms_and_limitations(finished_study: RunStudy) -> None:
    words = " ".join(Page(page_of(finished_study)).words.split())
    assert "Research software, not a medical device." in words
    assert "synthetic drawings, not radiographs of people" in words
    assert "--preset quickstart" in words


def test_report_command_reproduces_the_settings(finished_study: RunStudy) -> None:
    import tyro

    from cxr_tf.study.presets import resolve

    config = Run(directory(finished_study)).config
    words = shlex.split(config["command"])
    assert words[:2] == ["python", "scripts/run_study.py"]
    assert resolve(tyro.cli(RunStudy, args=words[2:])) == resolve(finished_study)
    assert config["command"] in Page(page_of(finished_study)).words


def test_report_escapes_user_input(settings: RunStudy) -> None:
    from cxr_tf.study.report import write_report

    config = Run(directory(settings)).config
    config["command"] = config["name"] = "<script>alert(1)</script>"
    (directory(settings) / "config.json").write_text(json.dumps(config))
    table = Path(settings.logs) / "knn/tiny-binary-knn/projector/metadata.tsv"
    table.write_text(table.read_text().replace("phantom0", "</script><b>0"))
    write_report(directory(settings))
    page = page_of(settings)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "</script><b>" not in page


def test_map_keeps_all_test_images(settings: RunStudy) -> None:
    from cxr_tf.study import report_pictures

    knn = Run(Path(settings.logs) / "knn/tiny-binary-knn")
    drawn = report_pictures.image_map(knn, ["normal", "pneumonia"], 20)
    assert drawn is not None
    images = knn.metrics["test"]["images"]
    assert len(drawn["points"]) == 20 and drawn["all"] == 90
    assert sum(p["test"] for p in drawn["points"]) == images < 20
    for x, y in drawn["data"]["after"]:
        assert 0 <= x <= 1000 and 0 <= y <= 640
    assert len(drawn["data"]["descriptions"]) == len(drawn["data"]["before"]) == 20
    for point, text in zip(drawn["points"], drawn["data"]["descriptions"], strict=True):
        assert text.startswith(f"{point['label']}, ") and ("(wrong)" in text) == point["wrong"]


# ---------------------------------------------------------------------- two studies


def compare(settings: RunStudy, *names: str) -> str:
    from cxr_tf.study.compare_studies import compare_studies

    return compare_studies(dataclasses.replace(settings, compare=names))


def test_study_compared_with_itself_has_no_changes(settings: RunStudy) -> None:
    text = compare(settings, "tiny", str(directory(settings)))
    assert "the same images" in text and "only in" not in text
    changes = re.findall(r"\)\s+([+-]\d\.\d{3})(  \*)?$", text, re.MULTILINE)
    assert len(changes) > 30
    assert {c for c, _ in changes} == {"+0.000"} and not any(star for _, star in changes)


def test_comparison_marks_disjoint_intervals(settings: RunStudy) -> None:
    shutil.copytree(directory(settings), directory(settings).with_name("other"))
    other = directory(settings).with_name("other")
    config = Run(other).config
    config["settings"]["seed"] = 5
    config["data_fingerprint"] = "another"
    (other / "config.json").write_text(json.dumps(config))
    metrics = json.loads((other / "metrics.json").read_text())
    for step in metrics["steps"]:
        if step["name"] == "autoencoder":
            step["run"] += "-2"
    (other / "metrics.json").write_text(json.dumps(metrics))
    folder = Path(settings.logs) / "autoencoder"
    shutil.copytree(folder / "tiny-autoencoder", folder / "tiny-autoencoder-2")
    scores = Run(folder / "tiny-autoencoder").metrics
    scores["test"] |= {"auroc": 0.5, "accuracy": 0.5}
    scores["test"]["ci95"] |= {"auroc": [0.4, 0.6], "accuracy": [0.4, 0.6]}
    Run(folder / "tiny-autoencoder").write_metrics(scores)
    scores["test"] |= {"auroc": 0.75, "accuracy": 0.6}
    scores["test"]["ci95"] |= {"auroc": [0.7, 0.8], "accuracy": [0.5, 0.7]}
    Run(folder / "tiny-autoencoder-2").write_metrics(scores)

    text = compare(settings, "tiny", "other")
    assert "DIFFERENT data" in text and "--seed: 0 -> 5" in text
    marked = [line for line in text.splitlines() if line.endswith("  *")]
    assert len(marked) == 1 and marked[0].split() == [
        *("auroc", "0.500", "(0.400", "to", "0.600)", "0.750", "(0.700", "to", "0.800)"),
        *("+0.250", "*"),
    ]
    assert "This is not a statistical test" in text


def test_missing_study_is_a_user_error(settings: RunStudy) -> None:
    with pytest.raises(UserError, match=r"no study mine .*known: tiny"):
        compare(settings, "tiny", "mine")
    with pytest.raises(UserError, match="two studies"):
        compare(settings, "tiny")


@pytest.mark.parametrize(
    "second, overlap",
    [((0.5, 0.6), True), ((0.4, 0.5), True), ((0.71, 0.8), False), ((0.1, 0.49), False)],
)
def test_intervals_overlap(second: tuple[float, float], overlap: bool) -> None:
    from cxr_tf.study.compare_studies import intervals_overlap

    assert intervals_overlap((0.5, 0.7), second) is overlap
    assert intervals_overlap(second, (0.5, 0.7)) is overlap
