"""The engine for many machines: Ray actors with one loaded model each.

    python scripts/score_archive.py ... --engine ray --address auto --workers 16 --gpus-per-worker 1

Actors wait for free resources, so the cluster may grow. When a node leaves, new actors replace
those it ran, and other actors compute their unfinished shards. Every node needs this package, and
must see the model's folder and --out under the same paths (a shared disk or an object store).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cxr_tf.archive.engine import Progress, Queue
from cxr_tf.archive.worker import ModelRequest, Worker, WorkerSettings, describe
from cxr_tf.errors import UserError, first_line

log = logging.getLogger(__name__)

FAILED_STARTS = 10


def connect(address: str) -> Any:
    """Connect to a cluster, or start one on this machine; raise UserError if that fails."""
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'ray>=2.50'") from None
    if not ray.is_initialized():
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            where = f"--address {address}" if address else "Ray cannot start on this machine"
            raise UserError(f"{where}: {reason}") from None
    return ray


def describe_model(
    request: ModelRequest, *, address: str, cpus: float, gpus: float
) -> dict[str, Any]:
    """Call `worker.describe` on a node of the cluster, because the runtime depends on the node."""
    ray = connect(address)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(describe)
    return _get(ray, task.remote(request))


def run(
    settings: WorkerSettings,
    shards: Sequence[int],
    workers: int,
    *,
    address: str,
    cpus: float,
    gpus: float,
    make_worker: type[Worker] = Worker,
) -> Iterator[Progress]:
    """Compute shards with `workers` actors, and yield the progress.

    workers: 0 means as many as the cluster has resources for; cpus, gpus: number per worker. Raises
    the same errors as `processes.run`.
    """
    ray = connect(address)
    workers = min(workers or _room(ray, cpus, gpus), len(shards))
    queue = Queue.of(shards)
    actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(
        make_worker
    )
    # The actor of each awaited reference, and the shard that it computes, or None while it starts.
    awaited: dict[Any, tuple[Any, int | None]] = {}
    failed_starts = 0

    def give(actor: Any) -> None:
        shard = queue.take()
        if shard is None:
            ray.kill(actor)
        else:
            awaited[actor.score.remote(shard)] = (actor, shard)

    def start() -> None:
        actor = actor_class.remote(settings)
        awaited[actor.__ray_ready__.remote()] = (actor, None)

    try:
        while queue.waiting or any(shard is not None for _, shard in awaited.values()):
            busy = sum(shard is not None for _, shard in awaited.values())
            while len(awaited) < min(workers, busy + len(queue.waiting)):
                start()
            ready, _ = ray.wait(list(awaited), num_returns=1, timeout=10)
            for reference in ready:
                actor, shard = awaited.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _error(error) from None
                except ray.exceptions.RayActorError as error:
                    # An error in the constructor is the cause of the actor's death.
                    cause = getattr(error, "cause", None) or error.__cause__
                    if isinstance(cause, UserError):
                        raise UserError(str(cause)) from None
                    reason = "the process or its node ended"
                    if shard is not None:
                        queue.return_(shard, reason)
                    else:
                        failed_starts += 1
                        if failed_starts == FAILED_STARTS:
                            text = (str(error).strip() or type(error).__name__).splitlines()[-1]
                            raise UserError(
                                f"{failed_starts} workers died while starting ({text}): does every "
                                "node have this package and enough memory?"
                            ) from None
                        time.sleep(1)
                    continue
                if shard is not None:
                    yield Progress(shard, int(result), finished=True)
                else:
                    failed_starts = 0
                give(actor)
        queue.check()
    finally:
        for actor, _ in awaited.values():
            ray.kill(actor)


def _room(ray: Any, cpus: float, gpus: float) -> int:
    """Return the number of workers that the cluster has resources for."""
    resources = ray.cluster_resources()
    by_gpu = resources.get("GPU", 0) / gpus if gpus else float("inf")
    return max(int(min(resources.get("CPU", 1) / max(cpus, 1e-9), by_gpu)), 1)


def _get(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _error(error) from None


def _error(error: Any) -> Exception:
    """Return the exception to raise in this process for an error in a worker."""
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(str(cause))
    if isinstance(cause, OSError) and cause.errno is not None:
        where = f": {cause.filename}" if cause.filename else " (in a worker)"
        return UserError(f"{cause.strerror}{where}")
    return RuntimeError(f"in a worker:\n{error}")
