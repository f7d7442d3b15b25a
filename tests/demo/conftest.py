"""Small models for the page: two classes and three, neighbours, an autoencoder."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def saved_models(
    tiny_backbone: str, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import keras
    from small_models import write_models

    from cxr_tf.models.classifier import build_classifier
    from cxr_tf.serving import export

    root = write_models(tmp_path_factory.mktemp("demo") / "saved_models", tiny_backbone, phantoms)
    keras.utils.set_random_seed(5)
    classes = ("normal", "pneumonia")
    export.export_classifier(
        build_classifier(tiny_backbone, classes=2, image_size=64),
        root / "binary",
        classes=classes,
        threshold=0.5,
        card={
            **{"kind": "classifier", "task": "binary", "classes": classes, "image_size": 64},
            **{"threshold": 0.5, "data_is_phantom": True},
        },
    )
    return root
