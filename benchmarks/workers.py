"""Measure training with several workers on one machine: throughput, and resuming after kills.

    python -m benchmarks.workers throughput --backbone alexnet --workers 2
    python -m benchmarks.workers kills --kills 5

throughput runs one process on one core, one process on as many cores as there are workers, and the
workers with one core each, in turn; the training images per second are computed from the seconds in
metrics.json. kills sends SIGKILL to the chief or a worker at a random moment, runs the same command
with --resume on all workers, and compares the weights with those of an undisturbed training run.
Requires Linux.
"""

import functools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from cxr_tf.config import BackboneName
from cxr_tf.data import loading

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Training:
    """A training run on phantoms, with random initial weights."""

    backbone: BackboneName = "alexnet"
    image_size: int = 64
    batch_size: int = 32
    epochs: int = 2
    workers: int = 2

    def start(
        self, folder: Path, *, processes: int, cores: int, resume: bool = False, tiny: bool = False
    ) -> list:
        """Start the processes, each with its own cores and its own folder.

        tiny: train the network of the tests instead of the backbone.
        """
        script = "tests/support/worker_training.py" if tiny else "scripts/train_classifier.py"
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(processes)]
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        for s in sockets:
            s.close()
        running = []
        for index in range(processes):
            environment = dict(os.environ)
            if processes > 1:
                task = {"type": "worker", "index": index}
                cluster = {"cluster": {"worker": addresses}, "task": task}
                environment["TF_CONFIG"] = json.dumps(cluster)
            available = os.cpu_count() or 1
            own_cores = {(index * cores + k) % available for k in range(cores)}
            own = folder / str(index)
            own.mkdir(parents=True, exist_ok=True)
            command = [
                *("taskset", "-c", ",".join(map(str, own_cores)), sys.executable),
                *(str(ROOT / script), "--data", "phantom", "--weights", "none"),
                *([] if tiny else ["--backbone", self.backbone]),
                *("--image-size", str(self.image_size), "--batch-size", str(self.batch_size)),
                *("--epochs", str(self.epochs), "--bootstrap-samples", "5"),
                *("--name", "run", "--worker-timeout", "60", "--logs", str(own / "logs")),
                *("--saved-models", str(own / "saved_models")),
                *(["--resume"] if resume else []),
            ]
            with (own / "output.txt").open("w") as output:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
        return running


@dataclass(frozen=True)
class Throughput(Training):
    """Measure how much faster several workers train than one process."""

    rounds: int = 3


@dataclass(frozen=True)
class Kills(Training):
    """Kill workers at random moments, resume, and compare the weights."""

    kills: int = 5
    seed: int = 0


def throughput(settings: Throughput) -> None:
    """Run all rounds, and print a table of the median, lowest and highest speeds."""
    count = settings.workers
    ways = {
        "one process, one core": (1, 1),
        f"one process, {count} cores": (1, count),
        f"{count} workers, one core each": (count, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    images = len(loading.open_catalog("phantom", seed=0, task="binary").rows("train"))
    for _ in range(settings.rounds):
        for name, (processes, cores) in ways.items():
            with tempfile.TemporaryDirectory() as directory:
                run_all(settings.start(Path(directory), processes=processes, cores=cores))
                seconds = metrics_of(Path(directory))["model"]["train_seconds"]
            rates[name].append(images * settings.epochs / seconds)
    print(f"| {settings.backbone} at {settings.image_size} pixels | training images/s |")
    print("| --- | --- |")
    for name, values in rates.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) |")


def kills(settings: Kills) -> None:
    """Kill, resume and compare training runs; print a table with one row for each kill."""
    rng = random.Random(settings.seed)
    start = functools.partial(settings.start, processes=settings.workers, cores=1, tiny=True)
    with tempfile.TemporaryDirectory() as directory:
        began = time.monotonic()
        run_all(start(Path(directory)))
        duration = time.monotonic() - began
        expected = weights_of(Path(directory))
    print("| killed | after, s | others exited after, s | their exit codes | resumed weights |")
    print("| --- | --- | --- | --- | --- |")
    for number in range(settings.kills):
        victim = number % settings.workers if number < settings.workers else None
        victim = rng.randrange(settings.workers) if victim is None else victim
        moment = rng.uniform(0.15, 0.7) * duration
        with tempfile.TemporaryDirectory() as directory:
            running = start(Path(directory))
            time.sleep(moment)
            running[victim].kill()
            killed = time.monotonic()
            others = [p for k, p in enumerate(running) if k != victim]
            codes = [p.wait(120) for p in others]
            seconds = time.monotonic() - killed
            running[victim].wait()
            run_all(start(Path(directory), resume=True))
            actual = weights_of(Path(directory))
            difference = max(
                float(np.abs(a - b).max()) for a, b in zip(expected, actual, strict=True)
            )
        who = "chief" if victim == 0 else f"worker {victim}"
        equal = "equal, bit for bit" if difference == 0 else f"differ by {difference:.1e}"
        print(f"| {who} | {moment:.0f} | {seconds:.1f} | {codes} | {equal} |", flush=True)


def run_all(running: list) -> None:
    """Wait for all processes; raise RuntimeError if one of them failed."""
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"a training run failed: exit codes {codes}")


def metrics_of(folder: Path) -> dict:
    """Return the content of the chief's metrics.json."""
    return json.loads((folder / "0/logs/classifier/run/metrics.json").read_text())


def weights_of(folder: Path) -> list[np.ndarray]:
    """Return the weights of the chief's model."""
    import keras

    file = folder / "0/logs/classifier/run/model.keras"
    return [np.asarray(w) for w in keras.saving.load_model(file, compile=False).weights]


if __name__ == "__main__":
    settings = tyro.extras.subcommand_cli_from_dict({"throughput": Throughput, "kills": Kills})
    throughput(settings) if isinstance(settings, Throughput) else kills(settings)
