"""Compare out-of-distribution detectors of one classifier, without training anything.

    python scripts/compare_novelty.py --classifier logs/classifier/vgg16-three-class

Every detector uses the outputs of one pass of the network. Thresholds accept 99 % of the validation
images; the tables show results on test images.
"""

import logging
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from benchmarks.config import CompareNovelty
from benchmarks.novelty.candidates import Features, Score, fit_candidates
from benchmarks.novelty.image_sets import to_answer, to_refuse
from cxr_tf.data import loading
from cxr_tf.data.batches import STRESS_SEED, evaluation_batches, to_rgb
from cxr_tf.data.dataset import ImageDataset, decode_catalog
from cxr_tf.explain.inputs import open_classifier
from cxr_tf.files import expand_user, write_arrays
from cxr_tf.serving.novelty import LARGEST_FIT, PASS_RATE, pixel_statistics

log = logging.getLogger(__name__)


def compare_novelty(settings: CompareNovelty) -> None:
    """Print tables of the AUROC and the share of refused images of each set, for each detector."""
    features = _load(settings) if settings.features else compute_features(settings)
    labels = features.pop("labels")
    get = {name: _features(features, name) for name in _names(features)}
    train, val, test = get.pop("train"), get.pop("val"), get.pop("test")
    scores = fit_candidates(train, labels, get.pop("perturbed"), val)
    for title, prefix in (("out of distribution", "refuse/"), ("acquisition shifts", "answer/")):
        sets = {n.removeprefix(prefix): x for n, x in get.items() if n.startswith(prefix)}
        for line in tables(title, scores, val, test, sets):
            log.info("%s", line)


def tables(
    title: str, scores: dict[str, Score], val: Features, test: Features, sets: dict[str, Features]
) -> list[str]:
    """Return two Markdown tables: AUROC of each set versus test images, and the share refused."""
    lines = []
    for what in ("AUROC", "refused, %"):
        names = ["test", *sets] if what != "AUROC" else list(sets)
        lines += ["", f"{title}: {what}", "", "| | " + " | ".join(names) + " | mean |"]
        lines.append("| --- |" + " --- |" * (len(names) + 1))
        for name, score in scores.items():
            inside, threshold = score(test), np.quantile(score(val), PASS_RATE, method="higher")
            outside = {n: score(x) for n, x in sets.items()}
            if what == "AUROC":
                truth = {n: np.repeat([0, 1], [len(inside), len(v)]) for n, v in outside.items()}
                values = [
                    float(roc_auc_score(truth[n], np.concatenate([inside, v])))
                    for n, v in outside.items()
                ]
                cells = [f"{v:.3f}" for v in [*values, float(np.mean(values))]]
            else:
                shares = [100 * float((v > threshold).mean()) for v in outside.values()]
                refused = 100 * float((inside > threshold).mean())
                cells = [f"{v:.1f}" for v in [refused, *shares, float(np.mean(shares))]]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def compute_features(settings: CompareNovelty) -> dict[str, np.ndarray]:
    """Run the network once on all sets of images; write the features with --save-features."""
    classifier = open_classifier(settings.classifier)
    data = settings.data or classifier.settings["data"]
    seed = classifier.settings.get("seed", 0)
    catalog = loading.open_catalog(data, seed=seed, task=classifier.task)
    catalog, images = decode_catalog(catalog, classifier.size, skip=True)
    labels = catalog.labels(classifier.task, classifier.classes)
    dataset = ImageDataset(catalog, images, labels, classifier.classes)
    train, val, test = (dataset.split(s) for s in ("train", "val", "test"))
    rows = np.linspace(0, len(train.labels) - 1, min(len(train.labels), LARGEST_FIT)).astype(int)
    some = np.linspace(0, len(test.labels) - 1, min(len(test.labels), settings.count)).astype(int)
    run = _network(classifier.model)
    result = {"labels": train.labels[rows]}

    def add(name: str, images: np.ndarray, stress_seed: int | None = None) -> None:
        batches = evaluation_batches(images, batch_size=32, stress_seed=stress_seed)
        parts = [[np.asarray(x) for x in run(batch)] for batch in batches]
        for kind, values in zip(
            ("embeddings", "logits", "pixels"), zip(*parts, strict=True), strict=True
        ):
            result[f"{name}:{kind}"] = np.concatenate(values)
        log.info("  %s: %d images", name, len(images))

    add("train", train.images[rows])
    add("perturbed", train.images[rows], STRESS_SEED)
    add("val", val.images)
    add("test", test.images)
    for name, images in to_refuse(test.images[some], count=settings.count).items():
        add(f"refuse/{name}", images)
    for name, images in to_answer(test.images[some]).items():
        add(f"answer/{name}", images)
    if settings.save_features:
        write_arrays(expand_user(settings.save_features), result, compressed=True)
    return result


def _network(model: keras.Model) -> tf.types.experimental.GenericFunction:
    outputs = [model.get_layer(name).output for name in ("embedding", "logits")]
    network, size = keras.Model(model.input, outputs), int(model.input_shape[1])
    return tf.function(
        lambda x: (*network(to_rgb(x), training=False), pixel_statistics(x)),
        input_signature=[tf.TensorSpec([None, size, size, 1], tf.float32)],
        autograph=False,
    )


def _load(settings: CompareNovelty) -> dict[str, np.ndarray]:
    with np.load(Path(settings.features)) as stored:
        return dict(stored)


def _names(arrays: dict[str, np.ndarray]) -> list[str]:
    return [key.removesuffix(":pixels") for key in arrays if key.endswith(":pixels")]


def _features(arrays: dict[str, np.ndarray], name: str) -> Features:
    return Features(*(arrays[f"{name}:{kind}"] for kind in ("embeddings", "logits", "pixels")))
