"""Kill, fill, refuse: does a disturbed archive end as an undisturbed one, file by file?

python -m benchmarks.archive_faults --work /tmp/faults
python -m benchmarks.archive_faults --work /tmp/faults --cases workers coordinator

Each case runs scripts/score_archive.py as a user does, on phantoms and a small random model, until
the archive is finished, and compares every shard with those of a run that nothing disturbed. Needs
Linux, and the optional packages of the case. Prints a table, and writes faults.json.
"""

import argparse
import contextlib
import hashlib
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

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"

SHARD_SIZE = 64
FILES = 100

random.seed(0)


class Campaign:
    """A folder with images, a model, and the digests of the undisturbed archive."""

    def __init__(
        self, work: Path, images: int, kills: int, coordinator_kills: int, stand_in: bool
    ) -> None:
        self.work = work
        self.script = ROOT / "scripts/score_archive.py"
        if stand_in:
            self.script = SUPPORT / "archive_workers.py"
        self.seconds = 2 if stand_in else 40
        """Within which a coordinator is killed after its start."""
        self.images = work / "images"
        self.model = work / "models" / "small"
        self.kills, self.coordinator_kills = kills, coordinator_kills
        if not self.images.exists():
            make_images(self.images, images)
        if not self.model.exists() and not stand_in:
            make_model(self.model)
        self.expected = self.undisturbed(work / "undisturbed", [str(self.images)])

    def undisturbed(self, out: Path, images: list[str]) -> dict[str, str]:
        """The shards of a run that nothing disturbs."""
        finish(self.command(out, images))
        return digests(out)

    def command(self, out: Path | str, images: list[str], *more: str) -> list[str]:
        """The command line of a user."""
        return [
            *(sys.executable, str(self.script)),
            *("--images", *images, "--model", str(self.model), "--out", str(out)),
            *("--runtime", "tensorflow", "--shard-size", str(SHARD_SIZE)),
            *("--signatures", "serving_default", "embed"),
            *(more or ("--workers", "2")),
        ]

    def check(self, out: Path) -> str:
        """What differs from the undisturbed archive, in words; empty where nothing does."""
        found = digests(out)
        if found != self.expected:
            different = [k for k in self.expected if found.get(k) != self.expected[k]]
            return f"{len(different)} shards differ, {len(set(found) - set(self.expected))} more"
        return paths_once(out)


def make_images(folder: Path, count: int) -> None:
    """So many names of a hundred phantoms, two of which cannot be read."""
    import io

    from PIL import Image

    from cxr_tf.data.sources.phantoms import FINDINGS, phantom

    folder.mkdir(parents=True)
    for k in range(FILES):
        encoded = io.BytesIO()
        image = phantom(FINDINGS[k % 3], seed=1, patient=k, size=128).image
        Image.fromarray(image).save(encoded, format="PNG")
        content = encoded.getvalue()
        (folder / f"{k:06d}.png").write_bytes({7: b"", 8: content[:200]}.get(k, content))
    for k in range(FILES, count):
        os.link(folder / f"{k % FILES:06d}.png", folder / f"{k:06d}.png")


def make_model(folder: Path) -> None:
    """A random AlexNet at 64 pixels, exported in a process of its own."""
    code = """
import sys
from pathlib import Path
from random_classifier import random_classifier
from cxr_tf.serving.export import export_classifier
classes = ("normal", "bacterial", "viral")
card = {"kind": "classifier", "task": "three_class", "classes": classes, "image_size": 64,
        "backbone": "alexnet", "threshold": 0.5}
export_classifier(random_classifier("alexnet", 64), Path(sys.argv[1]), classes=classes,
                  threshold=0.5, card=card)
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    """As a user's, with the package of this checkout."""
    paths = os.pathsep.join([str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def start(command: list[str], log: Path | None = None) -> subprocess.Popen:
    """The command, in a session of its own."""
    output = log.open("ab") if log else subprocess.DEVNULL
    return subprocess.Popen(
        command, env=environment(), stdout=output, stderr=output, start_new_session=True
    )


def finish(command: list[str]) -> None:
    """Runs a command to its end; an error shows what it said."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")


def workers_of(process: subprocess.Popen) -> list[int]:
    """The worker processes of a coordinator."""
    found = []
    with contextlib.suppress(OSError):
        task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"spawn_main" in command:
                    found.append(int(child))
    return found


def digests(out: Path) -> dict[str, str]:
    """{file: digest} of the shards and lists of an archive, hidden files included."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "summary.json"]
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)
    }


def paths_once(out: Path) -> str:
    """Whether each path of the list occurs once."""
    import pyarrow.parquet as pq

    found = [p for f in sorted((out / "shards").iterdir()) for p in read_paths(pq, f)]
    listed = [p for f in sorted((out / "lists").iterdir()) for p in read_paths(pq, f)]
    return "" if found == listed and len(set(found)) == len(found) else "paths differ"


def read_paths(pq: Any, file: Path) -> list[str]:
    """The paths in a Parquet file."""
    return pq.read_table(file, columns=["path"])["path"].to_pylist()


# ---------------------------------------------------------------------- cases


def kill_workers(campaign: Campaign) -> dict[str, Any]:
    """kill -9 of a random worker, after every few shards."""
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
            # Whatever it is doing, loading or computing; but not so often that nothing moves.
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
    """The coordinator is killed at a random moment after its start, and started again."""
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
            # Finished before it was killed: some of it is taken away again, to have more to kill.
            for shard in random.sample(sorted((out / "shards").iterdir()), k=40):
                shard.unlink()
            continue
        workers = workers_of(process)
        process.send_signal(how)
        killed += 1
        process.wait()
        # 130 from our handler; before that is installed, in the first second, the signal itself.
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


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def two_coordinators(campaign: Campaign) -> dict[str, Any]:
    """Two start at the same moment on one folder."""
    out = campaign.work / "two"
    both = [start(campaign.command(out, [str(campaign.images)])) for _ in range(2)]
    codes = [process.wait() for process in both]
    problems = [f"exit codes {codes}" if any(codes) else "", campaign.check(out)]
    return result("two coordinators at once", 1, problems)


def full_disk(campaign: Campaign) -> dict[str, Any]:
    """The output is a disk of a few hundred kilobytes, and is enlarged when it is full."""
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
    """Images and results in S3 (moto): 503, cut downloads, and listings that lag behind."""
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
        for _ in range(2):  # the second computes again what the first does not see
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
    return result("S3 that refuses, cuts and lists late", sum(faults.values()), problems, note)


def ray_node(campaign: Campaign) -> dict[str, Any]:
    """A whole node of a cluster of two goes, and another comes."""
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
    return result("loss of a Ray node (of two), and a new one", removed, problems)


def ray_actors(campaign: Campaign) -> dict[str, Any]:
    """kill -9 of a random actor, and of the driver."""
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
    """Processes in which an actor of ours computes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (folder / "cmdline").read_bytes()
            if name.startswith(b"ray::") and b"IDLE" not in name:
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine."""
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
    """The flags that join the cluster."""
    return ["--engine", "ray", "--address", nodes.address, "--workers", "2"]


def result(case: str, times: int, problems: list[str], note: str = "") -> dict[str, Any]:
    """A row of the table."""
    found = [p for p in problems if p]
    return {"case": case, "times": times, "equal": not found, "problems": found, "note": note}


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
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--coordinator-kills", type=int, default=10)
    parser.add_argument(
        "--stand-in", action="store_true", help="a model that loads in no time, to kill more often"
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
