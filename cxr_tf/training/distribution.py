"""Training on several GPUs or machines: the workers, their messages and their batches.

One machine with several GPUs uses `MirroredStrategy`; several machines use
`MultiWorkerMirroredStrategy` with the cluster that the environment variable TF_CONFIG describes.
Worker 0 is the chief.
"""

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data import decoding
from cxr_tf.errors import UserError
from cxr_tf.files import to_json_types
from cxr_tf.runs import NOT_COMPARED
from cxr_tf.training.connection_watchdog import connection_watchdog

log = logging.getLogger(__name__)

# The number of bytes that each worker sends at a time.
CHUNK = 1 << 26

# After a worker is lost, the process ends within this many seconds.
SECONDS_TO_END = 5.0

# The errors that TensorFlow raises if another worker stops: UNAVAILABLE first, then the others.
LOST = (
    *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError),
    *(tf.errors.DeadlineExceededError, tf.errors.InternalError),
)


class PeerError(UserError):
    """An error that has been reported to all workers."""


@dataclass(frozen=True)
class Workers:
    """The processes that train together, as worker `index` of `count` sees them.

    All workers must call the methods that communicate in the same order; with a single worker these
    methods return at once. `strategy` distributes each batch over all devices of all workers.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the chief, which writes logs, checkpoints and exports."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """The number of devices of all workers together."""
        return self.strategy.num_replicas_in_sync

    def part(self, count: int, unit: int = 1) -> range:
        """Return this worker's part of `count` rows, in multiples of `unit` where possible."""
        units = -(-count // unit)
        first, last = (units * k // self.count for k in (self.index, self.index + 1))
        return range(min(count, unit * first), min(count, unit * last))

    # ------------------------------------------------------------------ communication

    def exchange(self, message: bytes = b"", *, error: str = "") -> list[bytes]:
        """Send a message to all workers; return the messages of all workers, in worker order.

        Raises PeerError on every worker if one of them sends an error instead of a message.
        """
        if self.count == 1:
            return [message]
        sent = error.encode() or message
        headers = self._gather(np.array([len(sent), bool(error)], np.int64).view(np.float32))
        sizes, is_error = headers.view(np.int64).T.tolist()
        received = [bytearray() for _ in range(self.count)]
        for start in range(0, max(sizes), CHUNK):
            width = min(CHUNK, max(sizes) - start)
            piece = np.zeros(-(-width // 4) * 4, np.uint8)
            part = np.frombuffer(sent[start : start + width], np.uint8)
            piece[: len(part)] = part
            for all_of_one, row in zip(received, self._gather(piece.view(np.float32)), strict=True):
                all_of_one += row.view(np.uint8)[:width].tobytes()
        messages = [bytes(m[:size]) for m, size in zip(received, sizes, strict=True)]
        for index, text in enumerate(messages):
            if is_error[index]:
                who = "the chief" if index == 0 else f"worker {index}"
                prefix = "" if index == self.index else f"{who} stopped: "
                raise PeerError(prefix + text.decode())
        return messages

    def broadcast(self, value: Any) -> Any:
        """Return the chief's value, which has JSON types, on all workers."""
        if self.count == 1:
            return value
        message = json.dumps(value, default=_as_json).encode() if self.is_chief else b""
        return json.loads(self.exchange(message)[0])

    def broadcast_arrays(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the chief's arrays on all workers; all workers pass arrays of the same shapes."""
        if self.count == 1:
            return list(arrays)
        sent = b"".join(a.tobytes() for a in arrays) if self.is_chief else b""
        received, result, start = self.exchange(sent)[0], [], 0
        for array in arrays:
            stop = start + array.nbytes
            values = np.frombuffer(received[start:stop], array.dtype)
            result.append(values.reshape(array.shape))
            start = stop
        return result

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Concatenate the rows [N, ...] of all workers; only N may differ between workers."""
        if self.count == 1:
            return rows
        messages = self.exchange(np.ascontiguousarray(rows).tobytes())
        return np.concatenate(
            [np.frombuffer(m, rows.dtype).reshape(-1, *rows.shape[1:]) for m in messages]
        )

    def agree(self, facts: dict[str, Any]) -> None:
        """Raise PeerError on all workers if the facts of one worker differ from the chief's."""
        sent = json.dumps(facts, sort_keys=True).encode()
        everyone = [json.loads(message) for message in self.exchange(sent)]
        for index, of_worker in enumerate(everyone[1:], 1):
            for key, value in everyone[0].items():
                if of_worker.get(key) != value:
                    raise PeerError(
                        f"worker {index} has {key} {of_worker.get(key)}, the chief {value}: start "
                        "all workers with the same command and the same data"
                    )

    def agree_on_settings(self, job: str, settings: Any) -> None:
        """Raise PeerError on all workers if their settings or software differ."""
        if self.count > 1:
            flags = {
                "--" + key.replace("_", "-"): value
                for key, value in to_json_types(dataclasses.asdict(settings)).items()
                if key not in NOT_COMPARED
            }
            software = {"TensorFlow": tf.__version__, "Keras": keras.__version__}
            self.agree({"the job": job, **flags, **software})

    def agree_on_data(self, fingerprint: str) -> None:
        """Raise PeerError on all workers if the labels, patients, splits or files of one differ."""
        if self.count > 1:
            self.agree({"data": fingerprint})

    def load_images(self, paths: Sequence[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
        """Decode images like `decoding.load_images`; each worker decodes a part of the files."""
        rows = self.part(len(paths))
        images, unreadable = decoding.load_images(paths[rows.start : rows.stop], size)
        mine = {rows.start + row: reason for row, reason in unreadable.items()}
        reasons = [json.loads(m) for m in self.exchange(json.dumps(mine).encode())]
        return self.gather_rows(images), {int(k): v for part in reasons for k, v in part.items()}

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Gather float32 [S], with equal S on all workers, into [workers, S], bit for bit."""
        local = self.replicas // self.count
        padded = np.zeros(-(-len(values) // local) * local, np.float32)
        padded[: len(values)] = values
        pieces = padded.reshape(local, -1)
        distributed = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(pieces[context.replica_id_in_sync_group % local])
        )
        gathered = self.strategy.experimental_local_results(
            _all_gather(self.strategy, distributed)
        )[0]
        return np.ascontiguousarray(gathered.numpy().reshape(self.count, -1)[:, : len(values)])

    # ------------------------------------------------------------------ failures

    @contextlib.contextmanager
    def failing_together(self, seconds_to_end: float = SECONDS_TO_END) -> Iterator[None]:
        """Stop all workers with a one-line message if one of them fails or is lost.

        After a worker is lost, this process ends within `seconds_to_end` seconds.
        """
        try:
            yield
        except PeerError:
            raise
        except UserError as error:
            if self.count > 1:
                with contextlib.suppress(PeerError, *LOST):
                    self.exchange(error=str(error))
            raise
        except LOST as error:
            if self.count == 1:
                raise
            # TensorFlow may wait for the lost worker when the process ends.
            timer = threading.Timer(seconds_to_end, os._exit, [2])
            timer.daemon = True
            timer.start()
            raise PeerError(
                f"the connection to another worker is lost ({type(error).__name__}): that worker "
                "was killed, or stopped because of an error. Start all workers again with --resume"
            ) from error


def _as_json(value: Any) -> Any:
    """Convert a NumPy number to a Python number; unlike `to_json_types`, preserve NaN."""
    return value.item()


@tf.function(autograph=False, reduce_retracing=True)
def _all_gather(strategy: tf.distribute.Strategy, values: Any) -> Any:
    def gather(x: tf.Tensor) -> tf.Tensor:
        # A copy, because the argument of a function has no device, and collectives need one.
        return tf.distribute.get_replica_context().all_gather(tf.identity(x), axis=0)

    return strategy.run(gather, args=(values,))


# ---------------------------------------------------------------------- the strategy

_connected: list[Workers] = []


def connect(worker_timeout: float = 600.0) -> Workers:
    """Return the `Workers` of this process; the first call waits until all workers have started.

    The first call of a process must come before any other use of TensorFlow. Raises UserError if
    TF_CONFIG cannot be used. Ends the process with exit code 2 if a worker does not appear within
    `worker_timeout` seconds, or disappears again: see `connection_watchdog`.
    """
    if not _connected:
        addresses, index = read_cluster(os.environ.get("TF_CONFIG", ""))
        if len(addresses) > 1:
            others = [address for k, address in enumerate(addresses) if k != index]
            with connection_watchdog(others, worker_timeout):
                strategy = tf.distribute.MultiWorkerMirroredStrategy()
                workers = Workers(strategy, index, len(addresses))
                workers.exchange()
            if not workers.is_chief:
                log.info("this is worker %d; the chief, %s, writes the log", index, addresses[0])
                logging.getLogger("cxr_tf").setLevel(logging.WARNING)
        elif len(tf.config.list_physical_devices("GPU")) > 1:
            workers = Workers(tf.distribute.MirroredStrategy())
        else:
            workers = Workers(tf.distribute.get_strategy())
        _connected.append(workers)
    return _connected[0]


def read_cluster(tf_config: str) -> tuple[list[str], int]:
    """Return the addresses of all workers, the chief's first, and the index of this one.

    Raises UserError if TF_CONFIG does not describe a cluster of workers.
    """
    if not tf_config:
        return [], 0
    try:
        config = json.loads(tf_config)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        addresses = [*cluster.get("chief", []), *cluster.get("worker", [])]
        if not addresses:
            return [], 0
        kind, number = task["type"], int(task["index"])
        index = number + (len(cluster.get("chief", [])) if kind == "worker" else 0)
        if kind not in ("chief", "worker") or not 0 <= number < len(cluster.get(kind, [])):
            raise ValueError(f"task {kind} {number} is not a chief or worker of the cluster")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"missing key {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"TF_CONFIG does not describe a cluster ({reason}): it must be JSON such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from None
    return addresses, index


# ---------------------------------------------------------------------- batches


def distribute_batches(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    make: Callable[[range], tf.data.Dataset],
) -> Any:
    """Distribute training batches over the replicas, each of which prepares only its own rows.

    make: a function from the rows of every batch that one replica processes to a dataset of
    (inputs, targets). Returns a dataset of (inputs, targets, part), where part is int32 [2]: the
    replica's first row, and the size of the complete batch. Raises UserError if a batch has fewer
    images than there are replicas.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size < replicas:
        raise UserError(
            f"{replicas} devices need at least {replicas} images per training step, not "
            f"{batch_size}: increase --batch-size, or use more training images or fewer devices"
        )

    def of_replica(replica: int) -> tf.data.Dataset:
        first, last = (k * batch_size // replicas for k in (replica, replica + 1))
        part = tf.constant([first, batch_size], tf.int32)
        return make(range(first, last)).map(lambda inputs, targets: (inputs, targets, part))

    if replicas == 1:
        return of_replica(0)

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        parts = [of_replica(context.input_pipeline_id * local + k) for k in range(local)]
        # Infinite, so that the workers need not agree in every step whether there is more data.
        return tf.data.Dataset.choose_from_datasets(
            [part.repeat() for part in parts], tf.data.Dataset.range(local).repeat()
        )

    return strategy.distribute_datasets_from_function(of_worker)
