"""A whole study on phantoms, with a network of two layers in place of each backbone."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxr_tf.config import RunStudy
from cxr_tf.runs import Run

BACKBONES = ("resnet50", "vgg16", "alexnet")
TRAINED = [f"binary-{b}" for b in BACKBONES]
ALL_DONE = {"data", *TRAINED, "binary", "binary-knn", "autoencoder", "heatmaps", "served"}


@functools.cache
def run_tiny_study(root: Path) -> RunStudy:
    """Run a complete study under `root` with tiny backbones; return its settings.

    It runs once for all test modules that use the same folder.
    """
    from tiny_backbone import in_place_of

    from cxr_tf.anomaly import drawing
    from cxr_tf.data.sources.phantoms import write_phantoms
    from cxr_tf.evaluation import evaluate
    from cxr_tf.study.run_study import run_study

    data = root / "phantoms"
    write_phantoms(data, count=90, size=64, seed=3)
    for split in ("train", "val", "test"):  # pneumonia without its cause: two classes
        (data / split / "PNEUMONIA").mkdir()
        for folder in ("BACTERIAL", "VIRAL"):
            for path in (data / split / folder).iterdir():
                path.rename(data / split / "PNEUMONIA" / path.name)
            (data / split / folder).rmdir()
    settings = RunStudy(
        data=str(data),
        preset="quickstart",
        name="tiny",
        epochs=1,
        autoencoder_epochs=1,
        bootstrap_samples=20,
        logs=str(root / "logs"),
        saved_models=str(root / "saved_models"),
    )
    with in_place_of(*BACKBONES), pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, drawing):  # the report shows nothing of validation
            patch.setattr(module, "draw_split", of_test_only(module.draw_split))
        run_study(settings)
    return settings


def of_test_only(draw: Callable[..., None]) -> Callable[..., None]:
    def drawn(run: Run, split: str, *rest: Any) -> None:
        if split == "test":
            draw(run, split, *rest)

    return drawn


def copied(finished_study: RunStudy, root: Path) -> RunStudy:
    """Copy a finished study to `root`; return the settings of the copy, which a test may change."""
    shutil.copytree(Path(finished_study.logs).parent, root)
    return dataclasses.replace(
        finished_study,
        data=str(root / "phantoms"),
        logs=str(root / "logs"),
        saved_models=str(root / "saved_models"),
    )
