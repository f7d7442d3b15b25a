"""Export models as SavedModels for TF Serving: classifiers, nearest neighbours, autoencoders.

    folder = export_classifier(model, Path("saved_models/vgg16-binary"), classes=..., ...)
    served = load_served(folder)
    served.signature("serving_default")(image_bytes=tf.constant([...]))["probabilities"]

The image size, calibration, threshold and class names are inside the graph: a client sends the
bytes of a file and needs nothing else. `serving.store.versions` writes the folders.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.batches import to_rgb
from cxr_tf.models.batch_norm_folding import fold_norms
from cxr_tf.models.classifier import embedding_of
from cxr_tf.models.occlusion import occluder as occlusion_occluder
from cxr_tf.serving import decoding
from cxr_tf.serving.decoding import decode_images
from cxr_tf.serving.loading import ServedModel
from cxr_tf.serving.novelty import Detector
from cxr_tf.serving.store import versions


def export_autoencoder(
    model: keras.Model,
    base: Path,
    *,
    threshold: float,
    healthy_scores: np.ndarray,
    card: dict[str, Any],
    resumed: bool = False,
    detector: Detector | None = None,
) -> Path:
    """Export an autoencoder as the next version under `base`; return the version's folder.

    Signatures (N images; S the model's size):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> score float32 [N], threshold
      float32 [N], is_anomaly bool [N], percentile float32 [N]: the percentage of healthy
      validation images with a lower score;
    - `explain`: image_bytes -> reconstruction float32 [N, S, S] in 0..255, anomaly_map float32
      [N, S, S], score.

    healthy_scores: scores of the healthy validation images, ascending. With a detector (see
    `serving.novelty`), `serving_default` also returns novelty float32 [N] and is_novel bool [N]: a
    novel image is unlike the training images, whether healthy or not.
    """
    size = int(model.input_shape[1])
    sorted_scores = tf.constant(healthy_scores, tf.float32)

    images = tf.TensorSpec([None, size, size, 1], tf.float32)
    # One trace, shared and stored once for both signatures.
    network = tf.function(
        lambda x: model(x, training=False), input_signature=[images], autograph=False
    )

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        return tf.cast(decoding.decode_images(image_bytes, size), tf.float32)

    def detect(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = decode(image_bytes)
        score = network(images)["score"]
        novelty = detector(images) if detector else None
        of_novelty = {} if novelty is None else {"novelty": novelty, "is_novel": novelty > 1}
        below = tf.searchsorted(sorted_scores, score)
        return {
            "score": score,
            "threshold": tf.fill(tf.shape(score), tf.constant(threshold, tf.float32)),
            "is_anomaly": score >= tf.constant(threshold, tf.float32),
            "percentile": 100.0 * tf.cast(below, tf.float32) / len(healthy_scores),
            **of_novelty,
        }

    def explain(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = network(decode(image_bytes))
        reconstruction = tf.clip_by_value(outputs["reconstruction"][..., 0], 0.0, 255.0)
        return {**outputs, "reconstruction": reconstruction}

    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    signatures: dict[str, Signature] = {
        "serving_default": (detect, image_bytes),
        "explain": (explain, image_bytes),
    }
    return versions.write_version(
        base, lambda folder: save(signatures, folder), card=card, resumed=resumed
    )


# A signature of a SavedModel: a function of one tensor that returns named tensors, and the spec of
# its input.
Signature = tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], tf.TensorSpec]


def export_classifier(
    model: keras.Model,
    base: Path,
    *,
    classes: tuple[str, ...],
    threshold: float,
    card: dict[str, Any],
    resumed: bool = False,
    set_thresholds: np.ndarray | None = None,
    detector: Detector | None = None,
) -> Path:
    """Export a calibrated float32 classifier as the next version under `base`; return its folder.

    Signatures (N images; C classes; S the model's size; D the embedding's width):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> probabilities float32 [N, C],
      classes string [N, C], label string [N], prediction_set bool [N, C] (the classes that cannot
      be excluded), novelty float32 [N] and is_novel bool [N] (above 1: unlike the training images);
    - `tensor`: images float32 [N, S, S, 3] in 0..255 -> the same;
    - `embed`: image_bytes -> embedding float32 [N, D];
    - `predict_and_embed`: image_bytes -> the outputs of `serving_default` and `embed`, in one pass
      of the network. It is exported only with a detector, because `serving_default` then computes
      the embedding too. Without one, TensorFlow would optimise the graphs of the two signatures
      differently, and their outputs would differ in the last bits;
    - `occlusion`: image_bytes -> heatmap float32 [N, S, S] (the drop of the label's probability
      where the image is covered, as in scripts/explain.py), and the outputs of `serving_default`.

    threshold: with two classes, the label is the second if its probability is at least `threshold`;
    with more, the label is the most probable class. set_thresholds: see
    `metrics.conformal_thresholds`; without them, `prediction_set` is not exported. detector: see
    `serving.novelty`; without it, `novelty` and `is_novel` are not exported.
    """
    model = fold_norms(model)
    size = int(model.input_shape[1])
    names = tf.constant(list(classes))
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")
    outputs = {"embedding": embedding_of(model).output, "probabilities": model.output}
    whole = keras.Model(model.input, outputs)
    # One trace, shared and stored once for all signatures.
    network = tf.function(
        lambda x: whole(x, training=False), input_signature=[images], autograph=False
    )
    occluder = occlusion_occluder.make_occluder(model, occlusion_occluder.make_grid(size))

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        return to_rgb(decode_images(image_bytes, size))

    def classify(images: tf.Tensor, *, embed: bool = False) -> dict[str, tf.Tensor]:
        outputs = network(images)
        probabilities = outputs["probabilities"]
        result = {
            "probabilities": probabilities,
            "classes": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
            "label": tf.gather(names, decide(probabilities, threshold)),
        }
        if set_thresholds is not None:
            result["prediction_set"] = probabilities >= tf.constant(set_thresholds, tf.float32)
        if detector is not None:
            novelty = detector(images, outputs["embedding"])
            result |= {"novelty": novelty, "is_novel": novelty > 1}
        return {**result, "embedding": outputs["embedding"]} if embed else result

    def explain(images: tf.Tensor) -> dict[str, tf.Tensor]:
        result = classify(images)
        predicted = decide(result["probabilities"], threshold)
        heatmap = occlusion_occluder.heatmaps_of(occluder, images, predicted, classes)
        return {"heatmap": heatmap, **result}

    signatures: dict[str, Signature] = {
        "serving_default": (lambda x: classify(decode(x)), image_bytes),
        "tensor": (classify, images),
        "embed": (lambda x: {"embedding": network(decode(x))["embedding"]}, image_bytes),
        "occlusion": (lambda x: explain(decode(x)), image_bytes),
    }
    if detector is not None:
        both = (lambda x: classify(decode(x), embed=True), image_bytes)
        signatures["predict_and_embed"] = both
    return versions.write_version(
        base, lambda folder: save(signatures, folder), card=card, resumed=resumed
    )


def save(signatures: dict[str, Signature], folder: str) -> None:
    """Write a SavedModel with the given signatures.

    `keras.export.ExportArchive` would trace every function twice. AutoGraph is off: control flow on
    tensors is written with `tf.cond` and `tf.while_loop`.
    """
    traced = {
        name: tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
        for name, (function, spec) in signatures.items()
    }
    module = tf.Module()
    # Signatures share variables; each is stored once.
    used = {id(v): v for function in traced.values() for v in variables_in_order(function)}
    module.model_variables = list(used.values())
    tf.saved_model.save(module, folder, signatures=traced)


def variables_in_order(function: Any) -> list[tf.Variable]:
    """Return the variables of a concrete function in the order in which the graph captures them.

    The order of `function.variables` depends on memory addresses, and so differs from process to
    process: identical training runs would not give identical files.
    """
    position = {id(tensor): k for k, tensor in enumerate(function.captured_inputs)}
    return sorted(function.variables, key=lambda v: position[id(v.handle)])


def decide(probabilities: tf.Tensor, threshold: float) -> tf.Tensor:
    """Return the predicted class index of each row of probabilities [N, C], int64 [N].

    With two classes, the second is predicted if its probability reaches `threshold`; with more
    classes, the most probable one is predicted.
    """
    if probabilities.shape[-1] == 2:
        return tf.cast(probabilities[:, 1] >= threshold, tf.int64)
    return tf.argmax(probabilities, axis=-1)


def export_knn(
    classifier: ServedModel,
    base: Path,
    *,
    pipeline: Any,
    index: np.ndarray,
    index_labels: np.ndarray,
    index_paths: list[str],
    novelty_limit: float,
    card: dict[str, Any],
    write_beside: Callable[[Path], Any],
    resumed: bool = False,
) -> Path:
    """Export a nearest-neighbours model as the next version under `base`; return its folder.

    Signature `serving_default` (N images, C classes, k neighbours): image_bytes string [N] ->
    probabilities float32 [N, C] (shares of the vote), classes string [N, C], label string [N],
    neighbor_paths and neighbor_labels string [N, k], neighbor_distances float32 [N, k] ascending,
    novelty float32 [N] (distance to the k-th neighbour divided by `novelty_limit`), is_novel bool
    [N] (novelty above 1: the image is unlike the images of the index).

    pipeline: a fitted scikit-learn pipeline, with any of the steps `standardise`, `project` and
    `unit_length`, and `knn` as the last one; index: float32 [M, E], the embeddings of the training
    images after the steps before `knn`; index_labels: int [M]. `write_beside` writes further files
    into the version's folder; it may also check the finished SavedModel there, and raise. It is not
    called if a `resumed` job has already exported the model; see `versions.write_version`.
    """
    steps = dict(pipeline.steps)
    knn = steps["knn"]
    k = int(knn.n_neighbors)
    names = tf.constant(list(classifier.classes))
    module = tf.Module()
    module.classifier = classifier.loaded
    module.index = tf.Variable(index, trainable=False, name="index")
    module.index_labels = tf.Variable(index_labels.astype(np.int64), trainable=False)
    paths = tf.constant(index_paths)

    def transform(embedding: tf.Tensor) -> tf.Tensor:
        x = tf.cast(embedding, tf.float64)
        if "standardise" in steps:
            x = (x - steps["standardise"].mean_) / steps["standardise"].scale_
        if "project" in steps:
            mean = steps["project"].mean_.astype(np.float64)
            x = tf.matmul(x - mean, steps["project"].components_.T.astype(np.float64))
        if "unit_length" in steps:
            x = tf.math.divide_no_nan(x, tf.norm(x, axis=1, keepdims=True))
        # float32, like the index and the queries that scikit-learn compares with it.
        return tf.cast(x, tf.float32)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False
    )
    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        embedding = module.classifier.signatures["embed"](image_bytes=image_bytes)["embedding"]
        distances, rows = nearest_rows(transform(embedding), module.index, k)
        labels = tf.gather(module.index_labels, rows)
        weights = tf.ones_like(distances)
        if knn.weights == "distance":
            # As in scikit-learn: if neighbours are at distance 0, only they vote.
            identical = distances == 0
            weights = tf.where(
                tf.reduce_any(identical, axis=1, keepdims=True),
                tf.cast(identical, distances.dtype),
                1 / distances,
            )
        votes = tf.one_hot(labels, len(classifier.classes), dtype=weights.dtype)
        votes = tf.reduce_sum(votes * weights[..., None], axis=1)
        shares = votes / tf.reduce_sum(votes, axis=1, keepdims=True)
        novelty = tf.cast(distances[:, -1] / novelty_limit, tf.float32)
        return {
            "probabilities": tf.cast(shares, tf.float32),
            "classes": tf.tile(names[None], [tf.shape(shares)[0], 1]),
            "label": tf.gather(names, tf.argmax(votes, axis=1)),
            "neighbor_paths": tf.gather(paths, rows),
            "neighbor_labels": tf.gather(names, labels),
            "neighbor_distances": tf.cast(distances, tf.float32),
            "novelty": novelty,
            "is_novel": novelty > 1,
        }

    def write(folder: str) -> None:
        tf.saved_model.save(module, folder, signatures={"serving_default": classify})
        write_beside(Path(folder))

    return versions.write_version(base, write, card=card, resumed=resumed)


def nearest_rows(
    queries: tf.Tensor, index: tf.Variable, k: int, *, block: int = 8192
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the exact Euclidean distances and the numbers of the k nearest rows of an index.

    queries: float32 [N, E]; index: float32 [M, E], k <= M. Returns distances float64 [N, k],
    ascending, and row numbers int64 [N, k]. The index is searched in blocks, so that at most
    N x block distances are in memory for any M. They are computed in float64, as in scikit-learn:
    in float32, |q|^2 - 2qx + |x|^2 loses the digits that order near neighbours.
    """
    queries = tf.cast(queries, tf.float64)
    size = int(index.shape[0])
    squares = tf.reduce_sum(queries**2, axis=1, keepdims=True)

    def step(
        start: tf.Tensor, nearest: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        part = tf.cast(index[start : start + block], tf.float64)
        squared = squares - 2 * tf.matmul(queries, part, transpose_b=True)
        squared += tf.reduce_sum(part**2, axis=1)[None]
        numbers = tf.range(tf.shape(part)[0], dtype=tf.int64) + tf.cast(start, tf.int64)
        candidates = tf.concat([nearest, squared], axis=1)
        candidate_rows = tf.concat(
            [rows, tf.tile(numbers[None], [tf.shape(queries)[0], 1])], axis=1
        )
        best, columns = tf.math.top_k(-candidates, k)
        return start + block, -best, tf.gather(candidate_rows, columns, batch_dims=1)

    count = tf.shape(queries)[0]
    _, nearest, rows = tf.while_loop(
        lambda start, *_: start < size,
        step,
        (
            tf.constant(0),
            tf.fill([count, k], tf.constant(np.inf, tf.float64)),
            tf.zeros([count, k], tf.int64),
        ),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, k]),
            tf.TensorShape([None, k]),
        ),
    )
    return tf.sqrt(tf.maximum(nearest, 0.0)), rows
