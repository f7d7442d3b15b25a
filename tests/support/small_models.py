"""One small exported model of each kind."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import to_rgb
from cxr_tf.data.decoding import load_images
from cxr_tf.metrics.novelty import fit_gaussian
from cxr_tf.models.autoencoder import build_autoencoder, build_network
from cxr_tf.models.classifier import build_classifier, embedding_of
from cxr_tf.serving import export, loading, novelty

CLASSES = ("normal", "bacterial", "viral")
MODELS = ("tiny", "tiny-knn", "tiny-autoencoder")


def write_models(root: Path, backbone: str, data: Path) -> Path:
    """Export a small classifier, nearest neighbours and an autoencoder; return the folder."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer

    card = {"kind": "classifier", "task": "three_class", "classes": CLASSES, "image_size": 64}
    tf.keras.utils.set_random_seed(3)
    model = build_classifier(backbone, classes=3, image_size=64)
    folder = export.export_classifier(
        model, root / "tiny", classes=CLASSES, threshold=0.5, card=card
    )
    classifier = loading.load_served(str(folder))
    paths = [str(p) for p in sorted((data / "train").rglob("*.png"))[:20]]
    embeddings = classifier.predictor("embed")(classifier.decode(paths))["embedding"]
    labels = np.arange(len(paths)) % 3
    knn = Pipeline(
        [("unit_length", Normalizer()), ("knn", KNeighborsClassifier(3, weights="distance"))]
    ).fit(embeddings, labels)
    export.export_knn(
        classifier,
        root / "tiny-knn",
        pipeline=knn,
        index=knn[-1]._fit_X.astype(np.float32),
        index_labels=labels,
        index_paths=paths,
        novelty_limit=0.1,
        card={**card, "kind": "knn"},
        write_beside=lambda folder: None,
    )
    export.export_autoencoder(
        build_autoencoder(build_network("denoising", 128), "residual"),
        root / "tiny-autoencoder",
        threshold=0.5,
        healthy_scores=np.linspace(0, 1, 10),
        card={"kind": "autoencoder", "task": "anomaly", "image_size": 128},
    )
    return root


def write_binary_model(root: Path, backbone: str) -> None:
    """Export a small classifier of two classes, `binary`, with the operating point 0.5."""
    tf.keras.utils.set_random_seed(5)
    classes = ("normal", "pneumonia")
    card = {"kind": "classifier", "task": "binary", "classes": classes, "image_size": 64}
    export.export_classifier(
        build_classifier(backbone, classes=2, image_size=64),
        root / "binary",
        classes=classes,
        threshold=0.5,
        card={**card, "threshold": 0.5, "data_is_phantom": True},
    )


def write_model_with_detector(root: Path, backbone: str, data: Path) -> Path:
    """Export a small classifier, `novel`, with the outputs `novelty` and `prediction_set`."""
    tf.keras.utils.set_random_seed(7)
    model = build_classifier(backbone, classes=3, image_size=64)
    paths = [str(p) for p in sorted((data / "train").rglob("*.png"))[:20]]
    images, _ = load_images(paths, 64)
    embeddings = embedding_of(model)(to_rgb(images)).numpy()
    one_class = np.zeros(len(paths), np.int64)
    detector = novelty.Detector(
        pixels=fit_gaussian(novelty.statistics_of(images), one_class),
        pixel_limit=10.0,
        pass_rate=0.99,
        embedding=fit_gaussian(embeddings, one_class),
        embedding_limit=10.0,
    )
    export.export_classifier(
        model,
        root / "novel",
        classes=CLASSES,
        threshold=0.5,
        card={"kind": "classifier", "task": "three_class", "classes": CLASSES, "image_size": 64},
        set_thresholds=np.full(3, 0.2),
        detector=detector,
    )
    return root
