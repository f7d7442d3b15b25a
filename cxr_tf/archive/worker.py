"""The worker that all engines use: load the model once, then compute shards by number.

    worker = Worker(WorkerSettings(out="scores/", model="saved_models/vgg16-binary/1"))
    worker.score(42)                                  # writes shards/00042.parquet

While the model runs on one batch, at most two more are prefetched, so memory depends on batch and
shard size, not on the number of images.
"""

import contextlib
import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from cxr_tf.archive.plan import Plan, Recipe, shard_name
from cxr_tf.archive.shards import Column, columns_of, encode, with_remarks
from cxr_tf.archive.sources import Image, Reader, Unreachable
from cxr_tf.archive.storage import open_storage
from cxr_tf.data.sources.phantoms import phantom
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction.batch_prediction import predict_readable, reason_of

if TYPE_CHECKING:
    from cxr_tf.serving.loading import ServedModel
    from cxr_tf.serving.prediction.client import PredictFn

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2

# Two signatures, and the signature that returns the outputs of both in one pass of the network.
JOINT, JOINT_SIGNATURE = {"serving_default", "embed"}, "predict_and_embed"


@dataclass(frozen=True)
class ModelRequest:
    """A model and how to run it; see `config.ScoreArchive` for the fields."""

    model: str
    signatures: tuple[str, ...]
    runtime: str
    precision: str


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker in addition to the plan.

    model: folder of the model, if it differs from that in the plan; readers: number of files that
    are read at a time; retries: number of further attempts to read an unreachable file; threads:
    number of TensorFlow's threads, 0 for one per core.
    """

    out: str
    model: str
    readers: int = 8
    retries: int = 6
    threads: int = 0


def describe(request: ModelRequest) -> dict[str, Any]:
    """Load a model, and return the fields of a `Recipe` that depend on it.

    Raises UserError for a model without the requested signatures or runtime.
    """
    served = _load(request.model, request.runtime, request.precision)
    for signature in request.signatures:
        _predictor(served, signature)
    return {
        "model": str(served.folder.resolve()),
        "digest": _digest(served),
        "signatures": {name: served.engine_for(name) for name in request.signatures},
        "precision": request.precision,
    }


def load_predictors(settings: WorkerSettings, recipe: Recipe) -> "list[PredictFn]":
    """Load the model, and return functions from image files to the outputs of its signatures.

    There is one function for each signature, or a single one for two signatures that the model can
    compute in one pass. Raises UserError if this machine lacks the recipe's model or runtime.
    """
    _prepare_tensorflow(settings.threads)
    model = settings.model or recipe.model
    loaded: dict[str, ServedModel] = {}
    for engine in set(recipe.signatures.values()):
        # Without OpenVINO the precision has no meaning.
        precision = recipe.precision if engine == "openvino" else "float32"
        loaded[engine] = _load(model, engine, precision)
    digest = _digest(next(iter(loaded.values())))
    if digest != recipe.digest:
        raise UserError(
            f"{model} is not the model of the archive: on this machine its digest is "
            f"{digest[:8]}, not {recipe.digest[:8]}; copy the archive's model to that folder"
        )
    if len(loaded) == 1 and set(recipe.signatures) == JOINT:
        served = next(iter(loaded.values()))
        if JOINT_SIGNATURE in served.loaded.signatures:  # models of version 0.1 lack it
            return [_predictor(served, JOINT_SIGNATURE)]
    return [_predictor(loaded[engine], name) for name, engine in recipe.signatures.items()]


class Worker:
    """A loaded model, the plan, and a reader of files."""

    def __init__(
        self,
        settings: WorkerSettings,
        load: "Callable[[WorkerSettings, Recipe], list[PredictFn]]" = load_predictors,
    ) -> None:
        self.settings = settings
        self.storage = open_storage(settings.out)
        self.plan = Plan.read(self.storage)
        self.predictors = load(settings, self.plan.recipe)
        # A sample image determines the columns, because all images of a shard may be unreadable.
        sample = [phantom_png()]
        self.columns: list[Column] = columns_of(
            [with_remarks(predict(sample)) for predict in self.predictors]
        )
        self.read = Reader(settings.retries)

    def score(self, shard: int, report: Callable[[int], object] = lambda images: None) -> int:
        """Compute a shard unless it exists, and return its number of images.

        report: called after each batch with the number of processed images. Raises UserError if no
        image of the shard could be reached: then the store is down or a disk is missing.
        """
        if shard >= self.plan.shards:
            self.plan = self.plan.refreshed()
        images = self.plan.images_of(shard)
        if self.storage.exists(shard_name(shard)):
            return len(images)
        content = self.compute(images, report)
        self.storage.create(shard_name(shard), content)
        return len(images)

    def compute(
        self, images: Sequence[Image], report: Callable[[int], object] = lambda images: None
    ) -> bytes:
        """Return the content of the shard of the given images."""
        rows: list[int] = []
        reasons: dict[int, str] = {}
        unreachable: list[int] = []
        absent: list[int] = []
        parts: list[dict[str, np.ndarray]] = []
        batch_size = self.plan.recipe.batch_size
        for start, contents in self._batches(images, batch_size):
            unread = {start + k: c for k, c in enumerate(contents) if isinstance(c, Exception)}
            reasons |= {k: reason_of(e, images[k].path) for k, e in unread.items()}
            unreachable += [k for k, e in unread.items() if isinstance(e, Unreachable)]
            absent += [k for k, e in unread.items() if isinstance(e, FileNotFoundError)]
            read = {start + k: c for k, c in enumerate(contents) if isinstance(c, bytes)}
            first = predict_readable(self.predictors[0], list(read), list(read.values()))
            reasons |= first.reasons
            if first.rows:
                outputs = with_remarks(first.outputs)
                for number, predict in enumerate(self.predictors[1:], 1):
                    others = predict_readable(predict, first.rows, first.contents)
                    if others.reasons:  # all signatures decode alike
                        names = list(self.plan.recipe.signatures)
                        raise RuntimeError(
                            f"images that signature '{names[0]}' accepted were rejected by "
                            f"'{names[number]}': {others.reasons}"
                        )
                    outputs = {**with_remarks(others.outputs), **outputs}
                parts.append(outputs)
                rows += first.rows
            report(start + len(contents))
        if len(unreachable) == len(images):
            raise UserError(
                f"{images[0].path} and all other images of its shard: {reasons[0]}; run the same "
                "command again when they can be reached"
            )
        if len(absent) == len(images):
            _check_folder([image.path for image in images])
        outputs = {
            c.output: np.concatenate([part[c.output] for part in parts])
            for c in self.columns
            if parts
        }
        paths = [image.path for image in images]
        return encode(self.columns, paths, rows, outputs, reasons, self.plan.recipe.digest)

    def _batches(
        self, images: Sequence[Image], size: int
    ) -> Iterator[tuple[int, list[bytes | Exception]]]:
        """Yield (first row, contents or errors) of each batch while the next ones are read."""
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(self.settings.readers)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            ahead: deque[tuple[int, list[Future[bytes | Exception]]]] = deque()
            for start in range(0, len(images), size):
                batch = images[start : start + size]
                ahead.append((start, [pool.submit(self._read, image) for image in batch]))
                if len(ahead) > BATCHES_AHEAD:
                    first, futures = ahead.popleft()
                    yield first, [f.result() for f in futures]
            while ahead:
                first, futures = ahead.popleft()
                yield first, [f.result() for f in futures]

    def _read(self, image: Image) -> bytes | Exception:
        try:
            return self.read(image)
        except (UserError, OSError, Unreachable) as error:
            return error


def _check_folder(paths: Sequence[str]) -> None:
    """Raise UserError if the folder of these missing images is missing as well."""
    if any("://" in path for path in paths):
        return
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder}, with all {len(paths)} images of a shard, does not exist: is a disk "
            "missing, or are the paths in a list wrong? If the folder was removed on purpose, "
            "create an empty one of that name: the images are then recorded as missing"
        )


def phantom_png() -> bytes:
    """Return the content of a PNG file of a phantom."""
    image = phantom("bacterial", seed=0, patient=0, size=128).image
    encoded = io.BytesIO()
    PIL.Image.fromarray(image).save(encoded, format="PNG")
    return encoded.getvalue()


def _prepare_tensorflow(threads: int) -> None:
    """Import TensorFlow with the given number of threads and without start-up messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    if threads:
        # This fails, without harm, in a process that has already used TensorFlow.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)
    # Otherwise the first of several workers takes all memory of the GPU.
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)


def _load(model: str, runtime: str, precision: str) -> "ServedModel":
    from cxr_tf.serving.loading import load_served

    try:
        return load_served(model, engine=runtime, precision=precision)
    except UserError as error:
        # `--engine` has a different meaning in this command.
        text = str(error).replace("--engine-precision", "--runtime-precision")
        raise UserError(text.replace("--engine ", "--runtime ")) from None


def _predictor(served: "ServedModel", signature: str) -> "PredictFn":
    call: Any = served.signature(signature)
    outputs = call.structured_outputs
    if any(tensor.shape.rank is not None and tensor.shape.rank > 2 for tensor in outputs.values()):
        raise UserError(
            f"--signatures {signature}: its outputs include images, which do not fit into a table; "
            "use predict.py"
        )
    return served.predictor(signature)


def _digest(served: "ServedModel") -> str:
    from cxr_tf.serving.store.fingerprint import fingerprint

    return fingerprint(served.folder)
