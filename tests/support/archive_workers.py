"""Archive workers with a stand-in for the model, which loads at once and needs no TensorFlow.

    python archive_workers.py --images ... --model any --out ...     # flags of score_archive.py

Its predictions depend on every byte of a file. The environment variable SECONDS_PER_IMAGE sets the
time for each image, so that workers can be killed meanwhile.
"""

import functools
import hashlib
import os
import time
from pathlib import Path

import numpy as np

from cxr_tf.archive import processes, worker
from cxr_tf.archive.plan import Plan, Recipe
from cxr_tf.archive.storage import open_storage
from cxr_tf.serving.prediction.client import BadImages

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
        seconds = float(os.environ.get("SECONDS_PER_IMAGE", "0.01"))
        super().__init__(settings, functools.partial(load, seconds=seconds))


def die(settings):
    os._exit(3)


def settings(out, **changes):
    return worker.WorkerSettings(str(out), "", **changes)


def plan_of(out, images):
    """Create a plan for these paths in a folder."""
    from cxr_tf.archive.listing import list_images

    plan = Plan.create(open_storage(str(out)), RECIPE)
    return plan.extended(list_images(tuple(map(str, images))))[0]


def undisturbed(plan):
    """Return {name: content} of all shards, computed in this process."""
    here = make_worker()(settings(plan.storage.absolute))
    return {f"{s:05d}.parquet": here.compute(plan.images_of(s)) for s in range(plan.shards)}


def written(out):
    """Return {name: content} of the shards in a folder, hidden files included."""
    return {p.name: p.read_bytes() for p in (Path(out) / "shards").iterdir()}


def describe(request, **where):
    return {
        "model": request.model,
        "digest": "stand-in",
        "signatures": dict.fromkeys(request.signatures, "tensorflow"),
        "precision": request.precision,
    }


if __name__ == "__main__":
    from archive_workers import SlowWorker, describe  # so that other processes can import them

    from cxr_tf import commands
    from cxr_tf.archive import ray_cluster

    for engine in (processes, ray_cluster):
        engine.describe_model = describe
        engine.run = functools.partial(engine.run, make_worker=SlowWorker)
    commands.run("score_archive")
