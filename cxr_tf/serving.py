"""SavedModels for TF Serving: their signatures, and how to load them back.

    folder = export_classifier(model, Path("saved_models/vgg16-binary"), classes=..., ...)
    served = load_served(folder)
    served.signature("serving_default")(image_bytes=tf.constant([...]))["probabilities"]

Everything that was chosen (size, calibration, threshold, class names) is inside the graph: a client
sends the bytes of the file and needs nothing else. The folders that they are in are `store`'s.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf import engine as engines
from cxr_tf import store
from cxr_tf.client import Ask, BadImages, as_text, bad_images, read_image
from cxr_tf.data.pipeline import (
    CORRUPT,
    FAULTS,
    FINE,
    decode_radiograph,
    header_fault,
    to_rgb,
)
from cxr_tf.errors import UserError
from cxr_tf.explain import occlusion
from cxr_tf.models.classifier import embedding_of
from cxr_tf.models.folding import fold_norms
from cxr_tf.paths import expanded
from cxr_tf.runs import read_json

log = logging.getLogger(__name__)

# One of a SavedModel: a function of one tensor, which returns named tensors, and that tensor.
Signature = tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], tf.TensorSpec]

# A gRPC status is cut off at a few kilobytes.
_MOST_FAULTS_NAMED = 16


@dataclass(frozen=True)
class ServedModel:
    """A SavedModel of ours in memory, with what its card says.

    engine: what `ask` runs it on: tensorflow, openvino, or auto, which falls back to TensorFlow.
    precision: of OpenVINO, float32, bfloat16 or int8.
    """

    folder: Path
    card: dict[str, Any]
    loaded: Any
    engine: str = "tensorflow"
    precision: str = "float32"
    _calls: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def signature(self, name: str) -> Callable[..., dict[str, tf.Tensor]]:
        """The function behind a signature; takes and returns named tensors."""
        known = list(self.loaded.signatures)
        if name not in known:
            raise UserError(f"{self.folder} has no signature '{name}'; it has {', '.join(known)}")
        return self.loaded.signatures[name]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `probabilities`."""
        return tuple(self.card["classes"])

    def learnt_from(self) -> set[str]:
        """Digests (`Radiograph.digest`) of the files it was trained on or chosen by.

        Empty for an export that does not say.
        """
        file = self.folder / store.LEARNT_FROM
        return set(file.read_text().split()) if file.exists() else set()

    def decode(self, paths: list[str]) -> list[bytes]:
        """Contents of image files, as the signatures take them; DICOM becomes PNG on the way."""
        return [read_image(p) for p in paths]

    def ask(self, signature: str) -> Ask:
        """A signature that takes image files, called as one of a server (see `cxr_tf.client`).

        Raises UserError for one that does not, or that OpenVINO cannot run although it must.
        """
        call: Any = self.signature(signature)
        inputs = call.structured_input_signature[1]
        if [spec.dtype for spec in inputs.values()] != [tf.string]:
            raise UserError(
                f"signature '{signature}' does not take image files, but {list(inputs)}"
            )
        call = self._call(signature)

        def asked(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
            try:
                outputs = call(**{next(iter(inputs)): tf.constant(list(contents), tf.string)})
            except tf.errors.InvalidArgumentError as error:
                if reasons := bad_images(str(error), contents):
                    raise BadImages(reasons) from None
                raise
            return {name: as_text(values.numpy()) for name, values in outputs.items()}

        return asked

    def ask_files(self, signature: str) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
        """As `ask`, of the paths of files; UserError names the first that is bad."""
        ask = self.ask(signature)

        def asked(paths: Sequence[str]) -> dict[str, np.ndarray]:
            try:
                return ask(self.decode(list(paths)))
            except BadImages as bad:
                row, reason = next(iter(bad.reasons.items()))
                raise UserError(f"{paths[row]}: {reason}") from None

        return asked

    def engine_of(self, signature: str) -> str:
        """What answers when a signature is asked: tensorflow or openvino."""
        return "tensorflow" if self._call(signature) is self.signature(signature) else "openvino"

    def _call(self, signature: str) -> Any:
        """A signature on its engine; OpenVINO compiles each once."""
        if signature not in self._calls:
            call = self.signature(signature)
            self._calls[signature] = (
                call if self.engine == "tensorflow" else self._on_openvino(signature, call)
            )
        return self._calls[signature]

    def _on_openvino(self, signature: str, call: Any) -> Any:
        if self.precision == "int8" and signature == "embed":
            # Decisions bear 8 bits; a direction in 512 numbers does not, and nothing measures it.
            raise UserError("--engine-precision int8 is for predictions, not for embeddings")
        try:
            return engines.on_openvino(call, example=store.phantom_file(), precision=self.precision)
        except Exception as error:  # whatever it is, TensorFlow can do the work
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.engine == "openvino":
                raise UserError(
                    f"OpenVINO cannot run '{signature}' of {self.folder} ({reason}): take --engine "
                    "tensorflow"
                ) from error
            log.warning("'%s' runs on TensorFlow, not OpenVINO: %s", signature, reason)
            return call


def decode_images(image_bytes: tf.Tensor, size: int) -> tf.Tensor:
    """JPEG or PNG bytes, string [N] -> uint8 [N, size, size, 1], each by `decode_radiograph`.

    What every signature that takes files begins with. A request with a bad image gets no numbers at
    all, but an InvalidArgument error that names the positions of the bad ones:
    `image_bytes[3]: truncated or corrupt image (1834 bytes)`. Bad is what is empty, neither JPEG
    nor PNG (GIF and BMP too, which the decoder would take), of more than 50 megapixels, with a
    side below 16 pixels, or cannot be decoded. Sizes are read off the header, before anything is
    decoded. A JPEG damaged in the middle, which libjpeg decodes all the same, passes.
    """
    count = tf.size(image_bytes)
    blank = tf.zeros([size, size, 1], tf.uint8)

    def read(row: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        fault = header_fault(encoded)
        gray = tf.cond(fault == FINE, lambda: decode_radiograph(encoded, size), lambda: blank)
        return row, fault, gray

    files = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    # Of all that stock TensorFlow has, only tf.data goes on after an op has failed: the image drops
    # out, and its missing row number tells which it was. Four at a time, and not one to a core: a
    # large image takes a gigabyte while it is decoded.
    decoded = files.map(read, num_parallel_calls=4, deterministic=True).ignore_errors()
    # The batch must not be empty, so something goes before.
    before = tf.data.Dataset.from_tensors((tf.constant(-1), tf.constant(FINE), blank))
    batch = before.concatenate(decoded).batch(tf.cast(count, tf.int64) + 1)
    options = tf.data.Options()
    # Both are for streams that run for minutes.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    rows, faults, grays = batch.with_options(options).get_single_element()

    all_faults = tf.tensor_scatter_nd_update(tf.fill([count], CORRUPT), rows[1:, None], faults[1:])
    bad = tf.where(all_faults != FINE)[:, 0]
    named = bad[:_MOST_FAULTS_NAMED]
    # `client.bad_images` reads this.
    each = tf.strings.join(
        [
            *("image_bytes[", tf.strings.as_string(named), "]: "),
            tf.gather(tf.constant(FAULTS), tf.gather(all_faults, named)),
            *(" (", tf.strings.as_string(tf.strings.length(tf.gather(image_bytes, named)))),
            " bytes)",
        ]
    )
    message = tf.strings.reduce_join(each, separator="; ")
    in_all = [tf.strings.as_string(x) for x in (tf.size(bad), count)]
    message = tf.strings.join([message, "; ", in_all[0], " of ", in_all[1], " images"])
    with tf.control_dependencies([tf.debugging.Assert(tf.size(bad) == 0, [message])]):
        return tf.ensure_shape(tf.identity(grays[1:]), [None, size, size, 1])


def export_classifier(
    model: keras.Model,
    base: Path,
    *,
    classes: tuple[str, ...],
    threshold: float,
    card: dict[str, Any],
    resumed: bool = False,
) -> Path:
    """Writes a calibrated float32 classifier as the next version under `base`; returns its folder.

    Signatures (N images; C classes; S the model's size; D the embedding's width):

    - `serving_default`: image_bytes string [N] (JPEG or PNG) -> probabilities float32 [N, C],
      classes string [N, C], label string [N];
    - `tensor`: images float32 [N, S, S, 3] in 0..255 -> the same;
    - `embed`: image_bytes -> embedding float32 [N, D];
    - `occlusion`: image_bytes -> heatmap float32 [N, S, S] (by how much the probability of the
      label falls where the image is covered, as of scripts/explain.py), and what
      `serving_default` answers.

    `threshold` is the probability of the second class from which on it is the label (two classes);
    with more classes the label is the most probable one.
    """
    model = fold_norms(model)
    size = int(model.input_shape[1])
    names = tf.constant(list(classes))
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")
    answers = {"embedding": embedding_of(model).output, "probabilities": model.output}
    whole = keras.Model(model.input, answers)
    # Traced once, and stored once, for all signatures that run it.
    network = tf.function(
        lambda x: whole(x, training=False), input_signature=[images], autograph=False
    )
    occluder = occlusion.make_occluder(model, occlusion.make_grid(size))

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        return to_rgb(decode_images(image_bytes, size))

    def answered(probabilities: tf.Tensor, predicted: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "probabilities": probabilities,
            "classes": tf.tile(names[None], [tf.shape(probabilities)[0], 1]),
            "label": tf.gather(names, predicted),
        }

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = network(images)["probabilities"]
        return answered(probabilities, decide(probabilities, threshold))

    def heat(images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = network(images)["probabilities"]
        predicted = decide(probabilities, threshold)
        return {
            "heatmap": occlusion.heatmaps_of(occluder, images, predicted, classes),
            **answered(probabilities, predicted),
        }

    signatures: dict[str, Signature] = {
        "serving_default": (lambda x: classify(decode(x)), image_bytes),
        "tensor": (classify, images),
        "embed": (lambda x: {"embedding": network(decode(x))["embedding"]}, image_bytes),
        "occlusion": (lambda x: heat(decode(x)), image_bytes),
    }
    return store.write_version(
        base, lambda folder: save(signatures, folder), card=card, resumed=resumed
    )


def save(signatures: dict[str, Signature], folder: str) -> None:
    """Writes a SavedModel: by name, a function of one tensor and what that tensor is.

    As `keras.export.ExportArchive` does, which traces every function twice. What depends on a
    tensor is to be written as `tf.cond` and `tf.while_loop`.
    """
    traced = {
        name: tf.function(
            function, input_signature=[given], autograph=False
        ).get_concrete_function()
        for name, (function, given) in signatures.items()
    }
    module = tf.Module()
    # Of several signatures, but stored once.
    used = {id(v): v for function in traced.values() for v in function.variables}
    module.model_variables = list(used.values())
    tf.saved_model.save(module, folder, signatures=traced)


def decide(probabilities: tf.Tensor, threshold: float) -> tf.Tensor:
    """Class index of each row: the second of two from `threshold` on, else the most probable."""
    if probabilities.shape[-1] == 2:
        return tf.cast(probabilities[:, 1] >= threshold, tf.int64)
    return tf.argmax(probabilities, axis=-1)


# ---------------------------------------------------------------------- versions, read


def load_served(
    model: str, *, engine: str = "tensorflow", precision: str = "float32"
) -> ServedModel:
    """Loads a SavedModel of ours from its folder (newest version) or a version's folder.

    engine, precision: see `engine.takes_openvino`. Raises UserError where there is no model, not
    that engine, and for another precision than float32 where the model is no classifier: what that
    costs is measured of classifiers alone.
    """
    if not engines.takes_openvino(engine, precision):
        engine = "tensorflow"
    folder = expanded(model)
    if not folder.is_dir():
        raise UserError(f"no such model: {model} (expected saved_models/<name> or .../<version>)")
    if not (folder / "saved_model.pb").exists():
        found = store.versions(folder)
        if not found:
            raise UserError(f"{model} holds no SavedModel and no versions of one")
        folder = folder / str(found[-1])
    if not (folder / store.CARD).exists():
        raise UserError(f"{folder} is not a SavedModel of cxr_tf: it has no {store.CARD}")
    card = read_json(folder / store.CARD)
    if precision != "float32" and card["kind"] != "classifier":
        raise UserError(f"--engine-precision {precision} is for classifiers: leave it out")
    if engine == "auto" and card.get("backbone") in engines.SLOWER_ON_OPENVINO:
        engine = "tensorflow"
    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return ServedModel(folder, card, loaded, engine, precision)


def predict_files(
    served: ServedModel, paths: list[str], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, C] and predicted class index int64 [N] of image files.

    Raises UserError that names the file where one cannot be decoded.
    """
    classify = served.ask_files("serving_default")
    probabilities, labels = [], []
    for start in range(0, len(paths), batch_size):
        out = classify(paths[start : start + batch_size])
        probabilities.append(out["probabilities"])
        labels += [served.classes.index(x) for x in out["label"]]
    return np.concatenate(probabilities), np.array(labels, np.int64)


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
    """Writes a nearest-neighbours model as the next version under `base`; returns its folder.

    Signature `serving_default` (N images, C classes, k neighbours): image_bytes string [N] ->
    probabilities float32 [N, C] (shares of the vote), classes string [N, C], label string [N],
    neighbor_paths and neighbor_labels string [N, k], neighbor_distances float32 [N, k] ascending,
    novelty float32 [N] (distance to the k-th neighbour over `novelty_limit`; above 1 the image is
    unlike those that the index was made of).

    `pipeline` is the fitted scikit-learn one, with steps among `standardise`, `project`,
    `unit_length`, and last `knn`; index: float32 [M, E], its training rows after those steps;
    index_labels: int [M]. `write_beside` puts further files into the version's folder, and may
    look at the finished SavedModel there and raise; of a `resumed` job neither may be needed, see
    `store.write_version`.
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
        # The index is float32, and so is a query that scikit-learn compares with it.
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
            # As scikit-learn: where a neighbour is at no distance, only such neighbours vote.
            identical = distances == 0
            weights = tf.where(
                tf.reduce_any(identical, axis=1, keepdims=True),
                tf.cast(identical, distances.dtype),
                1 / distances,
            )
        votes = tf.one_hot(labels, len(classifier.classes), dtype=weights.dtype)
        votes = tf.reduce_sum(votes * weights[..., None], axis=1)
        shares = votes / tf.reduce_sum(votes, axis=1, keepdims=True)
        return {
            "probabilities": tf.cast(shares, tf.float32),
            "classes": tf.tile(names[None], [tf.shape(shares)[0], 1]),
            "label": tf.gather(names, tf.argmax(votes, axis=1)),
            "neighbor_paths": tf.gather(paths, rows),
            "neighbor_labels": tf.gather(names, labels),
            "neighbor_distances": tf.cast(distances, tf.float32),
            "novelty": tf.cast(distances[:, -1] / novelty_limit, tf.float32),
        }

    def write(folder: str) -> None:
        tf.saved_model.save(module, folder, signatures={"serving_default": classify})
        write_beside(Path(folder))

    return store.write_version(base, write, card=card, resumed=resumed)


def nearest_rows(
    queries: tf.Tensor, index: tf.Variable, k: int, *, block: int = 8192
) -> tuple[tf.Tensor, tf.Tensor]:
    """Exact Euclidean search: distances float64 [N, k] ascending and rows int64 [N, k].

    queries: float32 [N, E]; index: float32 [M, E], k <= M. The index is gone through in blocks,
    so that memory holds N x block distances whatever M is. In float64, as scikit-learn does, since
    |q|^2 - 2qx + |x|^2 loses in float32 the very digits that order near neighbours.
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
        of_candidates = tf.concat([rows, tf.tile(numbers[None], [tf.shape(queries)[0], 1])], axis=1)
        best, where = tf.math.top_k(-candidates, k)
        return start + block, -best, tf.gather(of_candidates, where, batch_dims=1)

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
