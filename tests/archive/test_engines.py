"""Tests of killed workers: the finished archive equals an undisturbed one, file by file."""

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-archive.txt)")

import archive_workers
from archive_workers import make_worker, plan_of, settings, undisturbed, written

from cxr_tf.archive import processes, ray_cluster
from cxr_tf.archive.engine import Queue
from cxr_tf.archive.plan import Plan
from cxr_tf.archive.worker import ModelRequest
from cxr_tf.errors import UserError

SECONDS = 0.01  # per image: a shard of eight takes 0.1 s


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """43 small files in six shards; one of the files is unreadable."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(43):
        (folder / f"{k:02d}.png").write_bytes(b"" if k == 5 else f"radiograph {k}".encode())
    return folder


def finish(
    plan: Plan, workers: int = 2, seconds: float = SECONDS, **how: int
) -> list[processes.Progress]:
    return list(
        processes.run(
            settings(plan.storage.absolute),
            plan.missing(),
            workers,
            make_worker=make_worker(seconds),
            **how,
        )
    )


def coordinator(out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, archive_workers.__file__, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["SECONDS_PER_IMAGE"] = str(SECONDS)
    return subprocess.Popen([*command, "--workers", str(workers)], env=environment)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in listed]
    return []


def test_archive_is_complete_after_workers_were_killed(tmp_path: Path, images: Path) -> None:
    plan = plan_of(tmp_path / "out", [images])
    steps = processes.run(
        settings(plan.storage.absolute), plan.missing(), 2, make_worker=make_worker(SECONDS)
    )
    killed, finished = 0, []
    for step in steps:
        if step.finished:
            finished.append(step)
        elif killed < 2:
            # One of the processes that are computing, in the middle of a shard.
            child = multiprocessing.active_children()[killed % 2]
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
    assert killed == 2
    assert sum(step.images for step in finished) == 43
    assert sorted(step.shard for step in finished) == list(range(6))
    assert written(tmp_path / "out") == undisturbed(plan)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_coordinator_ends_its_workers(
    tmp_path: Path, images: Path, how: signal.Signals
) -> None:
    plan = plan_of(tmp_path / "out", [images])
    process = coordinator(tmp_path / "out", 2)
    while not plan.finished():
        time.sleep(0.02)
    workers = children(process.pid)
    process.send_signal(how)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{w}").exists() for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(Path(f"/proc/{w}").exists() for w in workers)
    plan.storage.clear_unfinished()
    assert len(plan.missing()) > 0, "killed too late to show anything"
    finish(plan)
    assert written(tmp_path / "out") == undisturbed(plan)


def test_concurrent_coordinators_write_one_archive(tmp_path: Path, images: Path) -> None:
    plan = plan_of(tmp_path / "out", [images])
    both = [coordinator(tmp_path / "out", 1) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert written(tmp_path / "out") == undisturbed(plan)


def test_file_that_crashes_every_worker_is_reported(tmp_path: Path, images: Path) -> None:
    (images / "20.png").write_bytes(b"poison")
    plan = plan_of(tmp_path / "out", [images])
    message = r"2 workers died on shards/00002.parquet \(exit code 7\)"
    with pytest.raises(UserError, match=message):
        finish(plan, workers=1, seconds=0, attempts=2)
    assert plan.missing() == [2]


def test_the_log_states_whether_a_shard_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cxr_tf")
    queue = Queue.of([4], attempts=2)
    for outcome in ("another one will compute it", "given up after 2 attempts"):
        shard = queue.take()
        assert shard is not None
        queue.return_(shard, "SIGKILL")
        assert caplog.messages[-1] == f"a worker died on shards/00004.parquet (SIGKILL): {outcome}"
    with pytest.raises(UserError, match=r"^1 shard could not be computed: 2 workers died"):
        queue.check()


def test_cluster_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(UserError, match="--address auto: ConnectionError"):
        ray_cluster.connect("auto")
    with pytest.raises(UserError, match="Ray cannot start on this machine: ConnectionError"):
        ray_cluster.connect("")


def test_unwritable_folder_stops_the_archive_which_then_resumes(
    tmp_path: Path, images: Path
) -> None:
    plan = plan_of(tmp_path / "out", [images])
    (tmp_path / "out/shards").mkdir()
    (tmp_path / "out/shards").chmod(0o500)
    try:
        if os.access(tmp_path / "out/shards", os.W_OK):
            (tmp_path / "out/shards").rmdir()
            (tmp_path / "out/shards").touch()  # root may write anywhere, but not below a file
        with pytest.raises(UserError, match=r"Permission denied|Not a directory|File exists"):
            finish(plan, workers=1, seconds=0)
    finally:
        (tmp_path / "out/shards").chmod(0o700)
        if (tmp_path / "out/shards").is_file():
            (tmp_path / "out/shards").unlink()
    finish(plan, workers=1, seconds=0)
    assert written(tmp_path / "out") == undisturbed(plan)


def test_workers_that_cannot_start_raise_an_error(tmp_path: Path, images: Path) -> None:
    plan = plan_of(tmp_path / "out", [images])
    with pytest.raises(UserError, match="2 workers died while loading the model"):
        list(
            processes.run(
                settings(plan.storage.absolute),
                plan.missing(),
                1,
                make_worker=archive_workers.die,
                most_failed_starts=2,
            )
        )


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(1, r"\(exit code 1\)$"), (-9, r"\(SIGKILL\); it may have run out of memory$")],
)
def test_death_of_the_describing_process_is_an_error(
    monkeypatch: pytest.MonkeyPatch, exit_code: int, reason: str
) -> None:
    dead = SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=exit_code)
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: dead)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    with pytest.raises(UserError, match=f"^the process loading saved_models/a died {reason}"):
        processes.describe_model(
            ModelRequest("saved_models/a", ("serving_default",), "tensorflow", "float32")
        )


def test_archive_survives_the_loss_of_a_node(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # inherited by the nodes
    from ray.cluster_utils import Cluster

    plan = plan_of(tmp_path / "out", [images])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1)
    try:
        steps = ray_cluster.run(
            settings(plan.storage.absolute),
            plan.missing(),
            2,
            address=cluster.address,
            cpus=1,
            gpus=0,
            make_worker=archive_workers.SlowWorker,
        )
        finished = [next(steps), next(steps)]
        threading.Thread(target=cluster.remove_node, args=(node, False)).start()
        finished += steps
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sorted(step.shard for step in finished) == list(range(6))
    plan.storage.clear_unfinished()
    assert written(tmp_path / "out") == undisturbed(plan)
