"""The default engine: worker processes on this machine.

    for progress in run(settings, shards=[3, 4, 5], workers=2): ...

Each worker is a fresh interpreter, because TensorFlow does not survive a fork. A pipe connects
it to the coordinator. If either side is killed, the other reads the end of the pipe: the
coordinator then gives the shard to another worker, and a worker exits.
"""

import contextlib
import dataclasses
import glob
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from cxr_tf.archive.engine import ATTEMPTS, Progress, Queue
from cxr_tf.archive.worker import ModelRequest, Worker, WorkerSettings, describe
from cxr_tf.errors import UserError

log = logging.getLogger(__name__)

# The engine stops after this many consecutive workers have died before their model was loaded.
FAILED_STARTS = 5


def default_workers() -> int:
    """Return one worker per GPU, or one that uses all cores if there is no GPU."""
    return max(len(_gpus()), 1)


def run(
    settings: WorkerSettings,
    shards: Sequence[int],
    workers: int,
    *,
    make_worker: Callable[[WorkerSettings], Worker] = Worker,
    attempts: int = ATTEMPTS,
    most_failed_starts: int = FAILED_STARTS,
) -> Iterator[Progress]:
    """Compute shards in `workers` processes, and yield the progress.

    A shard is given up after `attempts` workers have died on it. The run stops after
    `most_failed_starts` consecutive workers have died before their model was loaded.

    Raises UserError for a user's mistake reported by a worker, and at the end if workers died on a
    shard repeatedly; RuntimeError for any other error in a worker.
    """
    queue = Queue.of(shards, attempts)
    workers = min(workers, len(shards))
    if not settings.threads and workers > 1:
        # More threads than cores only wait for each other. The number does not affect results.
        threads = max(_cores() // workers, 1)
        settings = dataclasses.replace(settings, threads=threads)
    gpus = _gpus()
    crew: dict[Connection, _Process] = {}
    failed_starts = 0
    try:
        while True:
            idle = [p for p in crew.values() if p.ready and p.shard is None]
            for process in idle:
                shard = queue.take()
                if shard is not None:
                    with contextlib.suppress(OSError):  # the worker has just died: handled below
                        process.connection.send(shard)
                    process.shard = shard
            busy = sum(p.shard is not None for p in crew.values())
            if not queue.waiting and not busy:
                break
            while len(crew) < min(workers, busy + len(queue.waiting)):
                number = _free_number(crew)
                gpu = gpus[number % len(gpus)] if gpus else None
                process = _start(make_worker, settings, number, gpu)
                crew[process.connection] = process
            for connection in wait(list(crew)):
                assert isinstance(connection, Connection)
                process = crew[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    del crew[connection]
                    process.process.join()
                    reason = _exit_reason(process.process.exitcode)
                    if process.shard is not None:
                        queue.return_(process.shard, reason)
                    elif not process.ready:
                        failed_starts += 1
                        if failed_starts == most_failed_starts:
                            raise UserError(
                                f"{failed_starts} workers died while loading the model "
                                f"({reason}): is there enough memory? Use fewer --workers, or free "
                                "memory"
                            ) from None
                    continue
                if kind == "ready":
                    process.ready, failed_starts = True, 0
                elif kind == "images":
                    yield Progress(process.shard or 0, value, finished=False)
                elif kind == "finished":
                    assert process.shard is not None
                    shard, process.shard = process.shard, None
                    yield Progress(shard, value, finished=True)
                else:
                    raise _error(kind, value)
        queue.check()
    finally:
        _stop(crew)


def describe_model(request: ModelRequest) -> dict[str, Any]:
    """Call `worker.describe` in a separate process, to keep TensorFlow out of the coordinator."""
    ours, theirs = _context().Pipe()
    process = _context().Process(target=_describe, args=(theirs, request), daemon=True)
    process.start()
    theirs.close()
    try:
        kind, value = ours.recv()
    except EOFError:
        process.join()
        reason = _exit_reason(process.exitcode)
        # Linux sends SIGKILL to a process when memory runs out.
        cause = "; it may have run out of memory" if reason == "SIGKILL" else ""
        raise UserError(f"the process loading {request.model} died ({reason}){cause}") from None
    finally:
        ours.close()
    process.join()
    if kind != "described":
        raise _error(kind, value)
    return value


@dataclasses.dataclass
class _Process:
    process: Any
    connection: Connection
    number: int
    ready: bool = False
    shard: int | None = None


def _start(
    make_worker: Callable[[WorkerSettings], Worker],
    settings: WorkerSettings,
    number: int,
    gpu: str | None,
) -> _Process:
    ours, theirs = _context().Pipe()
    process = _context().Process(
        target=_work, args=(theirs, make_worker, settings, gpu), daemon=True
    )
    process.start()
    theirs.close()  # otherwise the death of the worker would not be noticed
    return _Process(process, ours, number)


def _work(
    connection: Connection,
    make_worker: Callable[[WorkerSettings], Worker],
    settings: WorkerSettings,
    gpu: str | None,
) -> None:
    """Load the model, then compute the shards that the pipe requests until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the coordinator is gone
        try:
            with _quiet():
                worker = make_worker(settings)
            connection.send(("ready", None))
            while True:
                try:
                    shard = connection.recv()
                except EOFError:
                    return
                images = worker.score(shard, lambda done: connection.send(("images", done)))
                connection.send(("finished", images))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            _send_error(connection, error)


def _describe(connection: Connection, request: ModelRequest) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        try:
            with _quiet():
                described = describe(request)
            connection.send(("described", described))
        except Exception as error:
            _send_error(connection, error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what TensorFlow's libraries print while they load, before any log level applies.

    Errors are exceptions, which are sent through the pipe.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _send_error(connection: Connection, error: Exception) -> None:
    import traceback

    if isinstance(error, UserError):
        connection.send(("user error", str(error)))
    elif isinstance(error, OSError) and error.errno is not None:
        # Such as a full disk or a missing permission, which the user can fix.
        where = f": {error.filename}" if error.filename else " (in a worker)"
        connection.send(("user error", f"{error.strerror}{where}"))
    else:
        connection.send(("error", traceback.format_exc()))


def _error(kind: str, value: Any) -> Exception:
    return UserError(value) if kind == "user error" else RuntimeError(f"in a worker:\n{value}")


def _stop(crew: dict[Connection, _Process]) -> None:
    for process in crew.values():
        process.process.terminate()
    for process in crew.values():
        process.process.join(10)
        if process.process.is_alive():
            process.process.kill()
            process.process.join()


def _free_number(crew: dict[Connection, _Process]) -> int:
    taken = {p.number for p in crew.values()}
    return next(n for n in range(len(taken) + 1) if n not in taken)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _context() -> Any:
    return multiprocessing.get_context("spawn")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them, without loading TensorFlow."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    return [str(n) for n in range(len(glob.glob("/proc/driver/nvidia/gpus/*")))]
