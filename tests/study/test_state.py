"""Tests of the state of a study: what is repeated, resumed and locked, and its command."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_folder import Page, directory, page_of, runs_of
from tiny_study import ALL_DONE, BACKBONES, TRAINED

from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError
from cxr_tf.runs import Run


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


def test_moving_the_data_reruns_no_step(settings: RunStudy, called: list[str]) -> None:
    from cxr_tf.study.run_study import run_study

    moved = Path(settings.data).rename(Path(settings.data).with_name("elsewhere"))
    run_study(dataclasses.replace(settings, data=str(moved)))
    assert called == ["report"]


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


def test_report_command_reproduces_the_settings(finished_study: RunStudy) -> None:
    import tyro

    from cxr_tf.study.presets import resolve

    config = Run(directory(finished_study)).config
    words = shlex.split(config["command"])
    assert words[:2] == ["python", "scripts/run_study.py"]
    assert resolve(tyro.cli(RunStudy, args=words[2:])) == resolve(finished_study)
    assert config["command"] in Page(page_of(finished_study)).words
