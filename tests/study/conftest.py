"""A finished study, a copy of it, and jobs that copy runs instead of computing.

The study is a real run on phantoms, with a network of two layers in place of each backbone.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import BACKBONES, TRAINED, copied, run_tiny_study

from cxr_tf.config import RunStudy
from cxr_tf.runs import Run


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> RunStudy:
    return run_tiny_study(tmp_path_factory.getbasetemp() / "tiny-study")


@pytest.fixture
def settings(finished_study: RunStudy, tmp_path: Path) -> RunStudy:
    """A copy of the finished study, which a test may change."""
    return copied(finished_study, tmp_path / "study")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let each job copy a finished run of its kind; yield the names of the jobs in order."""
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
    # Each call collects garbage among all objects that pytest holds, which takes long.
    monkeypatch.setattr(study_run_study.keras.backend, "clear_session", lambda: None)
    monkeypatch.setattr(study_run_study, "write_report", lambda folder: names.append("report"))
    yield names
