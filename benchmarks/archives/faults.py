"""Inject faults while archives are scored; each archive must end up equal to an undisturbed one.

python -m benchmarks.archives.faults --work /tmp/faults
python -m benchmarks.archives.faults --work /tmp/faults --cases workers coordinator

Each case runs scripts/score_archive.py on phantoms and a small random model until the archive is
finished, and compares every shard with those of an undisturbed run. Requires Linux and the optional
packages of the case. Prints a table, and writes faults.json to --work.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.archives.campaign import (
    SUPPORT,
    Campaign,
    digests,
    environment,
    finish,
    is_alive,
    paths_once,
    start,
    workers_of,
)

random.seed(0)


# ---------------------------------------------------------------------- cases


def kill_workers(campaign: Campaign) -> dict[str, Any]:
    """Kill a random worker with SIGKILL after every few shards."""
    killed = runs = 0
    problems = []
    while killed < campaign.kills:
        runs += 1
        out = campaign.work / f"workers-{runs}"
        process = start(campaign.command(out, [str(campaign.images)]), out.with_suffix(".log"))
        finished = 0
        while process.poll() is None:
            time.sleep(random.uniform(0.5, 4))
            now = len(list((out / "shards").glob("[0-9]*")))
            workers = workers_of(process)
            # Kill while loading or computing, but only after another shard has been finished.
            if workers and now > finished and killed < campaign.kills:
                finished = now
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(workers), signal.SIGKILL)
                    killed += 1
        if process.returncode:
            problems.append(f"exit code {process.returncode}")
        problems.append(campaign.check(out))
    return result("kill -9 of a random worker", killed, problems, f"{runs} archives")


def kill_coordinator(campaign: Campaign, how: signal.Signals = signal.SIGKILL) -> dict[str, Any]:
    """Kill the coordinator at a random moment after its start, and start it again."""
    out = campaign.work / f"coordinator-{how.name}"
    times = campaign.coordinator_kills if how == signal.SIGKILL else 3
    problems, killed, orphans = [], 0, 0
    while True:
        command = campaign.command(out, [str(campaign.images)])
        process = start(command, out.with_suffix(".log"))
        if killed < times:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.2, 1) * campaign.seconds)
        else:
            process.wait()
        if process.poll() is not None:
            if process.returncode:
                problems.append(f"exit code {process.returncode}")
            if killed >= times:
                break
            # It finished before it was killed: remove some shards, so that kills can continue.
            for shard in random.sample(sorted((out / "shards").iterdir()), k=40):
                shard.unlink()
            continue
        workers = workers_of(process)
        process.send_signal(how)
        killed += 1
        process.wait()
        # The exit code is the handler's 130, or the signal's until the handler is installed.
        if how == signal.SIGTERM and process.returncode not in (130, -signal.SIGTERM):
            problems.append(f"SIGTERM: exit code {process.returncode}")
        deadline = time.monotonic() + 60
        while any(is_alive(w) for w in workers) and time.monotonic() < deadline:
            time.sleep(0.2)
        orphans += sum(is_alive(w) for w in workers)
    problems.append(campaign.check(out))
    if orphans:
        problems.append(f"{orphans} workers outlived the coordinator")
    name = "kill -9" if how == signal.SIGKILL else "SIGTERM"
    return result(f"{name} of the coordinator at a random moment", killed, problems)


def two_coordinators(campaign: Campaign) -> dict[str, Any]:
    """Start two coordinators at the same moment on one folder."""
    out = campaign.work / "two"
    both = [start(campaign.command(out, [str(campaign.images)])) for _ in range(2)]
    codes = [process.wait() for process in both]
    problems = [f"exit codes {codes}" if any(codes) else "", campaign.check(out)]
    return result("two coordinators at once", 1, problems)


def full_disk(campaign: Campaign) -> dict[str, Any]:
    """Write to a disk of a few hundred kilobytes, which is enlarged when it is full."""
    disk = campaign.work / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=True)
    filled, problems = 0, []
    try:
        out = disk / "out"
        for size in ("400k", "900k", "2m", "1g"):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            done = subprocess.run(
                campaign.command(out, [str(campaign.images)]),
                env=environment(),
                capture_output=True,
                text=True,
            )
            if not done.returncode:
                break
            errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
            filled += 1
            if done.returncode != 2 or len(errors) != 1 or "No space left" not in errors[0]:
                problems.append(f"exit code {done.returncode}: {done.stderr[-300:]}")
        problems.append(campaign.check(out))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return result("full disk, enlarged when it is full", filled, problems)


def object_store(campaign: Campaign) -> dict[str, Any]:
    """Use S3 (moto) with 503 responses, interrupted downloads, and delayed listings."""
    sys.path[:0] = [str(SUPPORT)]
    from flaky_s3 import flaky_s3

    with flaky_s3() as store:
        import fsspec

        s3 = fsspec.filesystem("s3")
        s3.mkdir("pacs")
        for file in sorted(campaign.images.iterdir())[:1500]:
            s3.pipe_file(f"pacs/films/{file.name}", file.read_bytes())
        images = ["s3://pacs/films/"]
        expected = campaign.undisturbed(campaign.work / "store-undisturbed", images)
        faults = {"503": 0, "cut": 0}

        def choose() -> int | str | None:
            draw = random.random()
            if draw < 0.08:
                faults["503"] += 1
                return 503
            if draw < 0.12:
                faults["cut"] += 1
                return "cut"
            return None

        store.choose = choose
        store.late = {f"{k:05d}.parquet" for k in range(0, 100, 3)}
        for _ in range(2):  # the second run recomputes shards that its listing does not show
            finish(campaign.command("s3://pacs/scores", images))
        store.choose, store.late = (lambda: None), set()
        copy = campaign.work / "store"
        for name in (*s3.ls("pacs/scores/shards"), *s3.ls("pacs/scores/lists")):
            file = copy / Path(name).relative_to("pacs/scores")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(s3.cat_file(name))
        (copy / "plan.json").write_bytes(s3.cat_file("pacs/scores/plan.json"))
        problems = ["" if digests(copy) == expected else "shards differ", paths_once(copy)]
    note = f"{faults['503']} x 503, {faults['cut']} downloads cut, a third of the listing late"
    return result("S3 with failed requests, late listings", sum(faults.values()), problems, note)


def ray_node(campaign: Campaign) -> dict[str, Any]:
    """Remove one of two nodes of a cluster, and add another."""
    with cluster() as nodes:
        out = campaign.work / "ray-node"
        command = campaign.command(out, [str(campaign.images)], *ray_flags(nodes))
        process = start(command, out.with_suffix(".log"))
        removed = 0
        while process.poll() is None:
            if removed < 3 and len(list((out / "shards").glob("[0-9]*"))) > 5 + 20 * removed:
                nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
                removed += 1
                time.sleep(2)
                nodes.add_node(num_cpus=1)
            time.sleep(0.5)
        problems = [f"exit code {process.returncode}" if process.returncode else ""]
        problems.append(campaign.check(out))
    return result("loss of one of two Ray nodes, which is replaced", removed, problems)


def ray_actors(campaign: Campaign) -> dict[str, Any]:
    """Kill random actors and the driver with SIGKILL."""
    with cluster() as nodes:
        out = campaign.work / "ray-actors"
        command = campaign.command(out, [str(campaign.images)], *ray_flags(nodes))
        actors = drivers = 0
        while True:
            process = start(command, out.with_suffix(".log"))
            began = time.monotonic()
            while process.poll() is None:
                time.sleep(random.uniform(0.05, 0.15) * campaign.seconds)
                pids = [p for p in actor_processes() if (out / "plan.json").exists()]
                if drivers < 2 and time.monotonic() - began > 1.5 * campaign.seconds:
                    process.kill()
                    process.wait()
                    drivers += 1
                elif pids and actors < 5:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(random.choice(pids), signal.SIGKILL)
                        actors += 1
            if process.returncode >= 0:
                break
        problems = [f"exit code {process.returncode}" if process.returncode else ""]
        problems.append(campaign.check(out))
    note = f"{actors} actors, {drivers} drivers"
    return result("kill -9 of Ray actors and drivers", actors + drivers, problems, note)


def actor_processes() -> list[int]:
    """Return the process ids of the worker actors."""
    actors = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (folder / "cmdline").read_bytes()
            if name.startswith((b"ray::Worker", b"ray::SlowWorker")):
                actors.append(int(folder.name))
    return actors


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Run a Ray cluster of two nodes on this machine."""
    os.environ.update(environment())
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def ray_flags(nodes: Any) -> list[str]:
    """Return the flags that connect to the cluster."""
    return ["--engine", "ray", "--address", nodes.address, "--workers", "2"]


def result(case: str, times: int, problems: list[str], note: str = "") -> dict[str, Any]:
    """Return a row of the table."""
    actual = [p for p in problems if p]
    return {"case": case, "times": times, "equal": not actual, "problems": actual, "note": note}


CASES: dict[str, Callable[[Campaign], dict[str, Any]]] = {
    "workers": kill_workers,
    "coordinator": kill_coordinator,
    "sigterm": lambda campaign: kill_coordinator(campaign, signal.SIGTERM),
    "two": two_coordinators,
    "disk": full_disk,
    "store": object_store,
    "ray-node": ray_node,
    "ray-actors": ray_actors,
}


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--kills", type=int, default=20, help="number of workers to kill")
    parser.add_argument("--coordinator-kills", type=int, default=10)
    parser.add_argument(
        "--stand-in",
        action="store_true",
        help="use a stand-in for the model that loads at once, for more kills while predicting",
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    campaign = Campaign(
        given.work, given.images, given.kills, given.coordinator_kills, given.stand_in
    )
    rows = []
    print("| fault | times | equal to the undisturbed archive | |\n| --- | --- | --- | --- |")
    for case in given.cases:
        began = time.monotonic()
        row = CASES[case](campaign)
        row["seconds"] = round(time.monotonic() - began)
        rows.append(row)
        equal = "yes" if row["equal"] else f"NO: {'; '.join(row['problems'])}"
        print(f"| {row['case']} | {row['times']} | {equal} | {row['note']} |", flush=True)
    (given.work / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(0 if all(row["equal"] for row in rows) else 1)


if __name__ == "__main__":
    main()
