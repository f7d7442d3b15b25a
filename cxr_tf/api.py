"""The Python API: `open_catalog`, `load_model`, and a function for each of most commands.

The function of a command takes the fields of its dataclass in `cxr_tf.config` as keyword arguments,
which are the flags with underscores instead of hyphens: `train_classifier.py --image-size 64` is
`train_classifier(image_size=64)`. A mistake by the caller raises `UserError`, with the message that
the script prints.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_tf.commands import COMMANDS, call
from cxr_tf.config import RunStudy
from cxr_tf.errors import UserError

if TYPE_CHECKING:
    from cxr_tf.data.catalog import Catalog
    from cxr_tf.runs import Run
    from cxr_tf.serving.loading import ServedModel


def open_catalog(
    data: str | Path, *, task: str = "binary", positive: str = "", seed: int = 0
) -> "Catalog":
    """Read a folder, .csv list or .npz file of radiographs; split it by patient if it is not split.

    Args:
        data: path of the folder, list or file, or `"phantom"` for synthetic radiographs.
        task: `"binary"`, `"three_class"`, or `"labels"` for any labels.
        positive: which of two labels is the positive one; only with `task="labels"`.
        seed: seed of the splits.

    Returns:
        The catalogue: `catalog.radiographs`, `catalog.paths`, `catalog.rows("train")`.

    Examples:
        >>> catalog = cxr_tf.open_catalog("phantom")
        >>> len(catalog.rows("test"))
        118
    """
    from cxr_tf.data.loading import open_catalog

    return open_catalog(str(data), seed=seed, task=task, positive=positive)


def load_model(
    path: str | Path, *, engine: str = "tensorflow", precision: str = "float32"
) -> "ServedModel":
    """Load an exported model of any kind: classifier, nearest neighbours or autoencoder.

    Args:
        path: `saved_models/<name>` for the newest version, or the folder of one version.
        engine: `"tensorflow"`, `"openvino"`, or `"auto"`.
        precision: with OpenVINO, `"float32"`, `"bfloat16"` or `"int8"`.

    Returns:
        The model, with `.predict(paths)`, `.embed(paths)`, `.heatmap(paths)` (classifiers),
        `.anomaly_map(paths)` (autoencoders) and its model card, `.card`.

    Examples:
        >>> model = cxr_tf.load_model("saved_models/vgg16-binary")
        >>> model.predict(["a.png"])["probabilities"].shape
        (1, 2)
    """
    from cxr_tf.serving.loading import load_served

    return load_served(str(path), engine=engine, precision=precision)


def train_classifier(**settings: Any) -> "Run":
    """Train, calibrate, evaluate and export one classifier; see `config.TrainClassifier`.

    Examples:
        >>> run = cxr_tf.train_classifier(backbone="alexnet", weights="none", image_size=64)
        >>> run.metrics["test"]["auroc"]
    """
    return _call("train_classifier", settings)


def compare_backbones(**settings: Any) -> "Run":
    """Train three backbones and select one on validation data; see `config.CompareBackbones`."""
    return _call("compare_backbones", settings)


def fit_knn(**settings: Any) -> "Run":
    """Fit nearest neighbours in a classifier's embedding; see `config.FitKnn`."""
    return _call("fit_knn", settings)


def train_autoencoder(**settings: Any) -> "Run":
    """Train an autoencoder on healthy radiographs; see `config.TrainAutoencoder`."""
    return _call("train_autoencoder", settings)


def explain(**settings: Any) -> "Run":
    """Explain a classifier's predictions with heatmaps; see `config.Explain`."""
    return _call("explain", settings)


def evaluate(**settings: Any) -> "Run":
    """Evaluate an exported model on a folder of radiographs; see `config.Evaluate`."""
    return _call("evaluate", settings)


def predict(**settings: Any) -> None:
    """Classify or score images, and print or write the predictions; see `config.Predict`.

    To get the predictions as arrays, call `load_model(...).predict(paths)`.
    """
    _call("predict", settings)


def score_archive(**settings: Any) -> None:
    """Classify or score an archive of any size, shard by shard; see `config.ScoreArchive`."""
    _call("score_archive", settings)


def prepare_data(**settings: Any) -> None:
    """Download, generate or convert a data set, or check one; see `config.PrepareData`."""
    _call("prepare_data", settings)


def check_served(**settings: Any) -> "Run":
    """Verify that exported models reproduce their runs' predictions; see `config.CheckServed`."""
    return _call("check_served", settings)


def export(**settings: Any) -> Path:
    """Convert an exported classifier to ONNX, LiteRT or OpenVINO; see `config.Export`.

    Returns the folder with the converted model and its card.
    """
    return _call("export", settings)


def run_study(**settings: Any) -> Path:
    """Train and evaluate all models; return the path of the report. See `config.RunStudy`."""
    return _call("run_study", settings)


def compare_studies(*studies: str | Path, logs: str = "logs") -> str:
    """Return the differences between two finished studies, metric by metric."""
    from cxr_tf.study.compare_studies import compare_studies

    return compare_studies(RunStudy(compare=tuple(map(str, studies)), logs=logs))


def _call(command: str, given: dict[str, Any]) -> Any:
    """Call a command; raise UserError for an unknown or missing setting."""
    kind = COMMANDS[command][0]
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"no such setting: {', '.join(unknown)}; known: {', '.join(known)}")
    # The fields are strings, but callers may pass paths.
    plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in given.items()}
    try:
        settings = kind(**plain)
    except TypeError as error:
        raise UserError(str(error).split(".__init__() ")[-1]) from None
    return call(command, settings)
