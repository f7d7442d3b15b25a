"""Measure archives: planning, images per second, Ray's overhead, search, and cost.

python -m benchmarks.archives.measure --work /tmp/archives plan
python -m benchmarks.archives.measure --work /tmp/archives memory speed ray search
python -m benchmarks.archives.measure cost --gpu-rate 1200 --decode-rate 110

Alternatives take turns on the same files; the time to load a model is not counted. Prints tables
with the median, the lowest and the highest of the rounds.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.archives.campaign import ROOT, environment

SIZE = 224
BATCH = 32
FOLDERS, FILES = 1000, 1000
DIFFERENT = 12

# ---------------------------------------------------------------------- material


def many_paths(work: Path) -> Path:
    """Create a thousand links to a folder with a thousand phantoms: a million paths."""
    root = work / "many"
    if not root.exists():
        write_phantoms(root / "real", FILES, (64, 64), "png")
        for k in range(FOLDERS):
            (root / f"{k:04d}").symlink_to("real")
    return root


def list_of(work: Path, count: int) -> Path:
    """Write a list of the first `count` paths of `many_paths`."""
    root = many_paths(work)
    path = work / f"list-{count}.txt"
    if not path.exists():
        names = (f"{root}/{k // FILES:04d}/{k % FILES:05d}.png\n" for k in range(count))
        path.write_text("".join(names))
    return path


def write_phantoms(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """Write phantoms as files of the given width and height in pixels."""
    from PIL import Image

    from cxr_tf.data.sources.phantoms import FINDINGS, phantom

    folder.mkdir(parents=True)
    # Only a few different images, because their content does not matter.
    for k in range(min(count, DIFFERENT)):
        image = phantom(FINDINGS[k % 3], seed=1, patient=k, size=min(size)).image
        Image.fromarray(image).resize(size).save(folder / f"{k:05d}.{suffix}")
    for k in range(DIFFERENT, count):
        shutil.copyfile(folder / f"{k % DIFFERENT:05d}.{suffix}", folder / f"{k:05d}.{suffix}")


def export_model(work: Path, backbone: str, size: int) -> Path:
    """Export a random classifier as a SavedModel, and as `<folder>.keras` for the Keras loop."""
    folder = work / f"{backbone}-{size}"
    if not folder.exists():
        code = f"""
import sys
from pathlib import Path
from random_classifier import random_classifier
from cxr_tf.serving.export import export_classifier
classes = ("normal", "bacterial", "viral")
card = dict(kind="classifier", task="three_class", classes=classes, image_size={size},
            backbone="{backbone}", threshold=0.5)
model = random_classifier("{backbone}", {size})
model.save(sys.argv[1] + ".keras")
export_classifier(model, Path(sys.argv[1]), classes=classes, threshold=0.5, card=card)
"""
        subprocess.run([sys.executable, "-c", code, str(folder)], env=environment(), check=True)
    return folder


def new_plan(out: Path, model: Path, images: list[str], shard_size: int) -> Any:
    """Create a plan for the given images."""
    from cxr_tf.archive.listing import list_images
    from cxr_tf.archive.plan import Plan, Recipe
    from cxr_tf.archive.storage import open_storage
    from cxr_tf.serving.store.fingerprint import fingerprint

    folder = model / "1"
    recipe = Recipe(
        model=str(folder),
        digest=fingerprint(folder),
        signatures={"serving_default": "tensorflow"},
        precision="float32",
        shard_size=shard_size,
        batch_size=BATCH,
    )
    plan = Plan.create(open_storage(str(out)), recipe)
    return plan.extended(list_images(tuple(images)))[0]


# ---------------------------------------------------------------------- plan and memory


def plan(given: argparse.Namespace) -> None:
    """Measure the time and memory of planning a list, and of searching it for new paths."""
    print("| paths | planned in (CPU time) | again, without new paths | peak memory |")
    print("| --- | --- | --- | --- |")
    for count in (10_000, 100_000, 1_000_000):
        listed = list_of(given.work, count)
        code = f"""
import sys, time
from pathlib import Path
from benchmarks.archives.measure import new_plan, peak
from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan, Recipe
from cxr_tf.archive.storage import open_storage
out = Path(sys.argv[1])
recipe = Recipe("model", "digest", {{"serving_default": "tensorflow"}}, "float32", 1024, 32)
times = []
for _ in range(2):
    started = time.perf_counter(), time.process_time()
    plan, added = Plan.create(open_storage(str(out)), recipe).extended(list_images(("{listed}",)))
    times += [time.perf_counter() - started[0], time.process_time() - started[1]]
assert plan.images == {count}
print(*times, peak(__import__("os").getpid()))
"""
        out = given.work / f"plan-{count}-{time.time_ns()}"
        done = subprocess.run(
            [sys.executable, "-c", code, str(out)],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        first, cpu, second, cpu_second, megabytes = map(float, done.stdout.split())
        print(
            f"| {count:,} | {first:.1f} s ({cpu:.1f} s) | {second:.1f} s ({cpu_second:.1f} s) | "
            f"{megabytes:.0f} MB |",
            flush=True,
        )


def memory(given: argparse.Namespace) -> None:
    """Measure the peak memory of coordinator and worker for 10,000 and for a million paths."""
    model = export_model(given.work, "alexnet", 64)
    print("| paths | computed | coordinator | worker |\n| --- | --- | --- | --- |")
    for count, part in ((10_000, "1/1"), (1_000_000, "1/100")):
        out = given.work / f"memory-{count}-{time.time_ns()}"
        command = [
            *(sys.executable, str(ROOT / "scripts/score_archive.py")),
            *("--images", str(list_of(given.work, count)), "--model", str(model)),
            *("--out", str(out), "--runtime", "tensorflow", "--workers", "1", "--only", part),
        ]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        own = worker = 0.0
        while process.poll() is None:
            own = max(own, peak(process.pid))
            for child in children(process.pid):
                # Before there are shards, the child is the process that only describes the model.
                if (out / "shards").exists():
                    worker = max(worker, peak(child))
            time.sleep(0.2)
        assert process.returncode == 0
        shards = len(list((out / "shards").iterdir()))
        print(f"| {count:,} | {shards} shards | {own:.0f} MB | {worker:.0f} MB |", flush=True)


def peak(pid: int) -> float:
    """Return the peak memory of a process in MB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """Return the process ids of the children of a process."""
    with contextlib.suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# ---------------------------------------------------------------------- speed


def speed(given: argparse.Namespace) -> None:
    """Measure images per second of two workers, one worker, predict.py, and a Keras loop."""
    folder = given.work / f"films-{given.images}" / "films"
    if not folder.exists():
        write_phantoms(folder, given.images, (1300, 900), "jpeg")
    model = export_model(given.work, given.backbone, SIZE)
    ways: dict[str, Callable[[], float]] = {
        "score_archive.py, 2 workers": lambda: by_processes(given, model, folder, 2),
        "score_archive.py, 1 worker": lambda: by_processes(given, model, folder, 1),
        "predict.py": lambda: by_code(PREDICT, model, folder),
        "image_dataset_from_directory and model.predict": lambda: by_code(KERAS, model, folder),
    }
    table(ways, given.rounds, f"{given.backbone} at {SIZE}, {given.images} JPEG of 1300 x 900")


def ray(given: argparse.Namespace) -> None:
    """Measure images per second of two workers on the same shards, with and without Ray."""
    folder = given.work / f"films-{given.images}" / "films"
    if not folder.exists():
        write_phantoms(folder, given.images, (1300, 900), "jpeg")
    model = export_model(given.work, given.backbone, SIZE)
    ways: dict[str, Callable[[], float]] = {
        "processes, 2 workers": lambda: by_processes(given, model, folder, 2),
        "Ray, 2 actors": lambda: by_ray(given, model, folder),
    }
    table(ways, given.rounds, f"{given.backbone} at {SIZE}, {given.images} JPEG of 1300 x 900")


def table(ways: dict[str, Callable[[], float]], rounds: int, title: str) -> None:
    """Measure all in each round, in reversed order in every other round, and print a table."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds):
        for name in list(ways)[:: -1 if k % 2 else 1]:
            rates[name].append(ways[name]())
            print(f"  round {k + 1}: {name}: {rates[name][-1]:.1f}/s", file=sys.stderr, flush=True)
    print(f"| {title} | images/s | lowest and highest of {rounds} |\n| --- | --- | --- |")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.1f} | {min(values):.1f} to {max(values):.1f} |", flush=True)


def rate_of(steps: Any) -> float:
    """Return the images per second between the first finished shard and the last."""
    started, images = 0.0, 0
    for step in steps:
        if step.finished:
            now = time.perf_counter()
            images += step.images if started else 0
            started = started or now
    return images / (now - started)


def by_processes(given: argparse.Namespace, model: Path, folder: Path, workers: int) -> float:
    """Return the images per second of the default engine."""
    from cxr_tf.archive import processes
    from cxr_tf.archive.worker import WorkerSettings

    out = given.work / f"speed-{time.time_ns()}"
    plan = new_plan(out, model, [str(folder)], BATCH)
    return rate_of(processes.run(WorkerSettings(str(out), ""), plan.missing(), workers))


def by_ray(given: argparse.Namespace, model: Path, folder: Path) -> float:
    """Return the images per second of Ray, with as many threads per worker as without Ray."""
    os.environ.update(environment())
    from cxr_tf.archive import ray_cluster
    from cxr_tf.archive.worker import WorkerSettings

    out = given.work / f"ray-{time.time_ns()}"
    plan = new_plan(out, model, [str(folder)], BATCH)
    settings = WorkerSettings(str(out), "", threads=max((os.cpu_count() or 2) // 2, 1))
    return rate_of(ray_cluster.run(settings, plan.missing(), 2, address="", cpus=1, gpus=0))


PREDICT = """
import sys, time
from pathlib import Path
from cxr_tf.serving.prediction.batch_prediction import predict_in_batches
from cxr_tf.serving.loading import load_served
predict = load_served(sys.argv[1]).predictor("serving_default")
paths = sorted(map(str, Path(sys.argv[2]).iterdir()))
times, images = [], 0
for batch in predict_in_batches(predict, paths, 32, "error"):
    times.append(time.perf_counter())
    images += len(batch.rows) if len(times) > 1 else 0
print(images / (times[-1] - times[0]))
"""

KERAS = """
import sys, time
from pathlib import Path
import keras
import cxr_tf.models.classifier, cxr_tf.models.alexnet
model = keras.models.load_model(sys.argv[1] + ".keras", compile=False)
data = keras.utils.image_dataset_from_directory(
    Path(sys.argv[2]).parent, labels=None, image_size=(224, 224), batch_size=32, shuffle=False,
    verbose=False).prefetch(2)
model.predict(data.take(1), verbose=0)
started = time.perf_counter()
images = len(model.predict(data, verbose=0))
print(images / (time.perf_counter() - started))
"""


def by_code(code: str, model: Path, folder: Path) -> float:
    """Run a program that prints its images per second; return this number."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


# ---------------------------------------------------------------------- search, cost


def search(given: argparse.Namespace) -> None:
    """Measure exact and approximate search in 200,000 embeddings of 128 numbers."""
    import numpy as np

    from cxr_tf.archive import similar_cases
    from cxr_tf.archive.plan import Plan, Recipe, shard_name
    from cxr_tf.archive.shards import columns_of, encode
    from cxr_tf.archive.sources import Image
    from cxr_tf.archive.storage import open_storage
    from cxr_tf.config import FitKnn

    count, width = 200_000, 128
    out = given.work / f"search-{time.time_ns()}"
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, width))
    recipe = Recipe("model", "digest", {"embed": "tensorflow"}, "float32", 4096, 32)
    plan = Plan.create(open_storage(str(out)), recipe)
    plan, _ = plan.extended(Image(f"{k}.png") for k in range(count))
    for shard in range(plan.shards):
        n = plan.size_of(shard)
        values = centres[rng.integers(0, 200, n)] + rng.normal(0, 0.5, (n, width))
        outputs = {"embedding": values.astype(np.float32)}
        paths = [i.path for i in plan.images_of(shard)]
        content = encode(columns_of([outputs]), paths, list(range(n)), outputs, {}, "digest")
        plan.storage.create(shard_name(shard), content)
    queries = similar_cases.unit_length(
        (centres[:100] + rng.normal(0, 0.5, (100, width))).astype(np.float32)
    )
    started = time.perf_counter()
    similar_cases.exact(plan, queries, 10)
    seconds = time.perf_counter() - started
    report = similar_cases.fit_knn(FitKnn(archive=str(out)))
    print("| 200,000 x 128 | time per query | recall@10 |\n| --- | --- | --- |")
    print(f"| exact, read from the shards | {10 * seconds:.1f} ms (of 100 at once) | 1 |")
    print(
        f"| faiss, IVF1024,SQ8, nprobe {report['nprobe']} | {report['milliseconds']:.3f} ms | "
        f"{report['recall']:.3f} |"
    )


def cost(given: argparse.Namespace) -> None:
    """Calculate the hours and the cost of an archive from the speeds of a GPU and of a core."""
    per_gpu = min(given.gpu_rate, given.decode_rate * given.cores)
    hours = given.films / (given.gpus * per_gpu) / 3600
    bound = "the GPU" if given.gpu_rate <= given.decode_rate * given.cores else "decoding"
    print(
        f"{given.films:,} films on {given.gpus} GPUs with {given.cores} cores each: {bound} limits "
        f"the speed to {per_gpu:.0f} images/s per GPU, {hours:.2f} h, "
        f"{hours * given.gpus:.1f} GPU hours, "
        f"{hours * given.gpus * given.price:.2f} at {given.price} per GPU hour"
    )


JOBS = {f.__name__: f for f in (plan, memory, speed, ray, search, cost)}


def main() -> None:
    """Run the jobs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("jobs", nargs="+", choices=list(JOBS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/archives"))
    parser.add_argument("--images", type=int, default=320, help="images for speed and ray")
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--films", type=int, default=10_000_000)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--cores", type=int, default=8, help="CPU cores per GPU")
    parser.add_argument("--gpu-rate", type=float, default=1000, help="images/s of one GPU")
    parser.add_argument("--decode-rate", type=float, default=100, help="images/s of one core")
    parser.add_argument("--price", type=float, default=1.0, help="price of one GPU hour")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for job in given.jobs:
        JOBS[job](given)


if __name__ == "__main__":
    main()
