"""Throughput of training with several processes on one machine, against one process.

    python -m benchmarks.workers --backbone alexnet --workers 2

Each process has its own core: one process on one core, one process on as many cores as there are
workers, and the workers, alternately. Prints a table of training images per second: median, lowest
and highest of the rounds. The seconds are those of metrics.json, without start and export.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from cxr_tf.config import BackboneName
from cxr_tf.data import loading

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class WorkerBenchmark:
    """Measure how much faster several workers train than one."""

    backbone: BackboneName = "alexnet"
    image_size: int = 64
    batch_size: int = 32
    epochs: int = 2
    workers: int = 2
    rounds: int = 3


def main(settings: WorkerBenchmark) -> None:
    """Run all rounds and print the table. Requires Linux, for the cores of a process."""
    count = settings.workers
    ways = {
        "one process, one core": (1, 1),
        f"one process, {count} cores": (1, count),
        f"{count} workers, one core each": (count, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(settings.rounds):
        for name, (processes, cores) in ways.items():
            rates[name].append(images_per_second(settings, processes, cores))
    print(f"| {settings.backbone} at {settings.image_size} pixels | training images/s |")
    print("| --- | --- |")
    for name, values in rates.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) |")


def images_per_second(settings: WorkerBenchmark, processes: int, cores: int) -> float:
    """Train with some processes of some cores each; return training images per second."""
    ports = [free_port() for _ in range(processes)]
    with tempfile.TemporaryDirectory() as directory:
        running = []
        for index in range(processes):
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            task = {"type": "worker", "index": index}
            environment = dict(os.environ)
            if processes > 1:
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
            own_cores = range(index * cores, (index + 1) * cores)
            process = subprocess.Popen(
                [
                    *("taskset", "-c", ",".join(map(str, own_cores)), sys.executable),
                    *(ROOT / "scripts/train_classifier.py", "--data", "phantom"),
                    *("--backbone", settings.backbone, "--weights", "none"),
                    *("--image-size", str(settings.image_size)),
                    *("--batch-size", str(settings.batch_size)),
                    *("--epochs", str(settings.epochs), "--bootstrap-samples", "5"),
                    *("--name", "run", "--logs", f"{directory}/{index}/logs"),
                    *("--saved-models", f"{directory}/{index}/saved_models"),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            running.append(process)
        if any([process.wait() for process in running]):
            raise RuntimeError("a training failed")
        run = Path(directory) / "0/logs/classifier/run"
        metrics = json.loads((run / "metrics.json").read_text())
    images = len(loading.open_catalog("phantom", seed=0, task="binary").rows("train"))
    return images * settings.epochs / metrics["model"]["train_seconds"]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main(tyro.cli(WorkerBenchmark))
