"""Chest X-ray classification, anomaly detection and explanation in Keras 3 and TensorFlow.

    import cxr_tf

    catalog = cxr_tf.open_catalog("chest_xray")
    run = cxr_tf.train_classifier(data="chest_xray", backbone="vgg16", task="binary")
    run.metrics["test"]["auroc"], run.figures, run.predictions("test")

    model = cxr_tf.load_model("saved_models/vgg16-binary")
    model.predict(["a.png", "b.png"])["label"]

Importing the package loads nothing heavy; TensorFlow is loaded by the first call.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_tf.api import (
        check_served,
        compare_backbones,
        compare_studies,
        evaluate,
        explain,
        export,
        fit_knn,
        load_model,
        open_catalog,
        predict,
        prepare_data,
        run_study,
        score_archive,
        train_autoencoder,
        train_classifier,
    )
    from cxr_tf.errors import UserError

__version__ = "0.2.0"

__all__ = [
    "UserError",
    "check_served",
    "compare_backbones",
    "compare_studies",
    "evaluate",
    "explain",
    "export",
    "fit_knn",
    "load_model",
    "open_catalog",
    "predict",
    "prepare_data",
    "run_study",
    "score_archive",
    "train_autoencoder",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cxr_tf' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("cxr_tf.errors" if name == "UserError" else "cxr_tf.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
