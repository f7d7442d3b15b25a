"""Score an archive: plan once, compute the missing shards, and summarise.

    python scripts/score_archive.py --images ward/ --model saved_models/vgg16-binary --out scores/

All state is in files. `plan.json` and `lists/` define what to compute; a shard is finished when its
file exists, and files appear complete or not at all. So any process may be killed at any moment,
and several coordinators may work on one folder.
"""

import contextlib
import logging
import random
import re
import time
from collections.abc import Iterator, Sequence

from cxr_tf.archive import processes, ray_cluster
from cxr_tf.archive.engine import Progress
from cxr_tf.archive.listing import list_images
from cxr_tf.archive.plan import Plan, Recipe, shard_name
from cxr_tf.archive.report import merge, print_status, summarize, unreachable_shards
from cxr_tf.archive.storage import Storage, open_storage
from cxr_tf.archive.worker import ModelRequest, WorkerSettings
from cxr_tf.config import ScoreArchive, check_numbers
from cxr_tf.errors import UserError
from cxr_tf.serving.prediction.batch_prediction import progress

log = logging.getLogger(__name__)

SHARD_SIZE = 1024
BATCH_SIZE = 32


def score_archive(settings: ScoreArchive) -> None:
    """Score an archive, print its status, or merge its shards, as the settings specify.

    Raises UserError for a user's mistake; finished shards are kept.
    """
    check_numbers(settings)
    storage = open_storage(settings.out)
    if settings.status:
        print_status(Plan.read(storage))
        return
    if settings.merge:
        merge(Plan.read(storage), settings.merge)
        return
    part = parse_part(settings.only)
    storage.clear_unfinished()
    plan = make_plan(settings, storage)
    if settings.retry_unreachable:
        for shard in unreachable_shards(plan):
            storage.remove(shard_name(shard))
    try:
        compute(settings, plan, part)
    finally:
        storage.clear_unfinished()
    if not plan.missing():
        summarize(plan)


def parse_part(text: str) -> tuple[int, int]:
    """Parse `3/16` as (2, 16), the index from 0 and the number of parts; empty text as (0, 1)."""
    if not text:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--only {text}: give part/parts, such as 1/16 to 16/16")
    return int(match[1]) - 1, int(match[2])


# ---------------------------------------------------------------------- plan


def make_plan(settings: ScoreArchive, storage: Storage) -> Plan:
    """Create or read the plan of the folder, and add new files of --images.

    Raises UserError and writes nothing if the folder has a plan with a different model, or with
    different signatures, precision or sizes.
    """
    if settings.model:
        plan = Plan.create(storage, resolve(settings, storage))
    elif Plan.exists(storage):
        plan = Plan.read(storage)
    else:
        raise UserError(
            f"{settings.out} contains no plan yet: give --model and --images to start one"
        )
    if settings.images:
        started = time.monotonic()
        plan, added = plan.extended(list_images(settings.images))
        seconds = time.monotonic() - started
        log.info("new images: %d, planned in %.1f s", added, seconds)
    if not plan.shards:
        raise UserError(f"{settings.out} has no images in its plan: give --images")
    return plan


def resolve(settings: ScoreArchive, storage: Storage) -> Recipe:
    """Return the recipe of the settings; sizes default to those of an existing plan."""
    if not settings.signatures or len(set(settings.signatures)) < len(settings.signatures):
        raise UserError("--signatures: name each once, such as serving_default embed")
    shard_size, batch_size = SHARD_SIZE, BATCH_SIZE
    if Plan.exists(storage):
        earlier = Plan.read(storage).recipe
        shard_size, batch_size = earlier.shard_size, earlier.batch_size
    elif not settings.images:
        raise UserError(f"{settings.out} contains no plan yet: give --images as well to start one")
    request = ModelRequest(
        settings.model, settings.signatures, settings.runtime, settings.runtime_precision
    )
    if settings.engine == "ray":
        facts = ray_cluster.describe_model(
            request,
            address=settings.address,
            cpus=settings.cpus_per_worker,
            gpus=settings.gpus_per_worker,
        )
    else:
        facts = processes.describe_model(request)
    return Recipe(
        **facts,
        shard_size=settings.shard_size or shard_size,
        batch_size=settings.batch_size or batch_size,
    )


# ---------------------------------------------------------------------- computation


def compute(settings: ScoreArchive, plan: Plan, part: tuple[int, int]) -> None:
    """Compute the missing shards of a part of the archive, and show the progress."""
    mine = range(part[0], plan.shards, part[1])
    missing = sorted(set(plan.missing()) & set(mine))
    if not missing:
        log.info("nothing to compute: all %d shards exist", len(mine))
        return
    total = sum(map(plan.size_of, mine))
    done = total - sum(map(plan.size_of, missing))
    log.info("%d images in %d shards, %d images already done", total, len(mine), done)
    # Start at a random shard, so that two coordinators on one folder rarely compute the same one.
    start = random.randrange(len(missing))
    show = None
    running: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for step in run_engine(settings, plan, missing[start:] + missing[:start]):
            # The display starts only now, because loading the models would distort the speed.
            show = show or stack.enter_context(progress(total, before=done + step.images))
            if step.finished:
                done += step.images
                running.pop(step.shard, None)
            else:
                running[step.shard] = step.images
            show(done + sum(running.values()))
    # Look the shards up by name, because directory listings of some stores lag behind.
    lost = [s for s in plan.missing() if s in set(missing) and not plan.has(s)]
    if lost:
        raise UserError(
            f"{shard_name(lost[0])} was written, but is not in {settings.out}: do all workers see "
            "the same folder?"
        )


def run_engine(settings: ScoreArchive, plan: Plan, shards: Sequence[int]) -> Iterator[Progress]:
    """Run the engine that the settings name, and yield its progress."""
    worker = WorkerSettings(
        out=plan.storage.absolute,
        model=plan.model or plan.recipe.model,
        readers=settings.readers,
        retries=settings.retries,
    )
    if settings.engine == "ray":
        return ray_cluster.run(
            worker,
            shards,
            settings.workers or 0,
            address=settings.address,
            cpus=settings.cpus_per_worker,
            gpus=settings.gpus_per_worker,
        )
    return processes.run(worker, shards, settings.workers or processes.default_workers())
