"""Archive workers without TensorFlow, and a coordinator of them as a process of its own.

    python archive_workers.py OUT WORKERS

What such a worker predicts depends on every byte of a file. It takes its time, so that it can be
killed meanwhile.
"""

import functools
import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np

from cxr_tf.archive import processes, worker
from cxr_tf.archive.plan import Plan, Recipe
from cxr_tf.archive.storage import open_storage
from cxr_tf.serving.client import BadImages

RECIPE = Recipe("nowhere", "digest", {"serving_default": "tensorflow"}, "float32", 8, 4)


def predict(contents, seconds=0.0):
    time.sleep(seconds * len(contents))
    if bad := {k: "empty" for k, c in enumerate(contents) if not c}:
        raise BadImages(bad)
    if b"poison" in contents:
        os._exit(7)
    shares = [int.from_bytes(hashlib.sha256(c).digest()[:4], "big") / 2**32 for c in contents]
    sick = np.array(shares, np.float32)
    return {
        "probabilities": np.stack([1 - sick, sick], 1),
        "classes": np.array([["normal", "pneumonia"]] * len(contents), object),
        "label": np.array(["pneumonia" if s > 0.5 else "normal" for s in sick], object),
        "embedding": np.outer(sick, np.arange(4)).astype(np.float32),
    }


def load(settings, recipe, seconds=0.0):
    return [functools.partial(predict, seconds=seconds)]


def make_worker(seconds=0.0):
    return functools.partial(worker.Worker, load=functools.partial(load, seconds=seconds))


class SlowWorker(worker.Worker):
    def __init__(self, settings):
        super().__init__(settings, functools.partial(load, seconds=0.02))


def die(settings):
    os._exit(3)


def settings(out, **changes):
    return worker.WorkerSettings(str(out), "", **changes)


def plan_of(out, images):
    """A plan in a folder for these paths."""
    from cxr_tf.archive.listing import list_images

    plan = Plan.create(open_storage(str(out)), RECIPE)
    return plan.extended(list_images(tuple(map(str, images))))[0]


def undisturbed(plan):
    """{name: content} of all shards, computed here."""
    here = make_worker()(settings(plan.storage.absolute))
    return {f"{s:05d}.parquet": here.compute(plan.images_of(s)) for s in range(plan.shards)}


def written(out):
    """{name: content} of the shards of a folder, hidden files included."""
    return {p.name: p.read_bytes() for p in (Path(out) / "shards").iterdir()}


def main(out, workers, seconds):
    plan = Plan.read(open_storage(out))
    steps = processes.run(settings(out), plan.missing(), workers, make_worker=make_worker(seconds))
    for step in steps:
        print(step.shard, step.images, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
