"""Tests of the report of a study: its numbers, words and tags."""

import json
import re
from pathlib import Path

from study_folder import Page, directory, page_of, runs_of
from tiny_study import TRAINED

from cxr_tf.config import RunStudy
from cxr_tf.runs import Run


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


def test_sentences_name_metrics_as_figures_do() -> None:
    from cxr_tf.study.report import metric_name

    names = [metric_name(m) for m in ("auroc", "recall", "f1", "balanced_accuracy")]
    assert names == ["AUROC", "Sensitivity", "F1", "Balanced accuracy"]


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
