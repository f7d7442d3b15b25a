"""All five jobs on one catalogue, and the report of them.

    python scripts/run_study.py --preset quickstart
    python scripts/run_study.py --data chest_xray --name mine

What is kept. Each step has its own run directory. `study.json` remembers, for the fingerprint of a
step's settings and data, which one. A finished step with the same fingerprint is not done again; a
changed one gets a run of a new name, with -2, -3, ... behind it. What is built on another run names
it in its settings, so a new classifier brings new neighbours and new heatmaps, and nothing else.
"""

import logging
from pathlib import Path

import keras

from cxr_tf.config import RunStudy
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, loading
from cxr_tf.errors import UserError
from cxr_tf.serving import versions
from cxr_tf.study.compare_studies import compare_studies
from cxr_tf.study.plan import Images, plan
from cxr_tf.study.presets import resolve
from cxr_tf.study.report import write_report
from cxr_tf.study.state import Study
from cxr_tf.study.timing import measure, plan_table
from cxr_tf.training.epochs import format_duration

log = logging.getLogger(__name__)


def run_study(settings: RunStudy) -> Path:
    """Do every step that is not done yet, write the report, and return its path.

    With `settings.compare` print what changed between two studies instead, and return the folder of
    the second. Raises UserError on a user's mistake, before anything is written wherever it can be
    known before.
    """
    if settings.compare:
        compare_studies(settings)
        return Path(settings.compare[-1])
    settings = resolve(settings)
    # Every job traces its functions once; TensorFlow takes those of a dozen jobs for one in a loop.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    versions.check_saved_models(settings.saved_models)
    catalog = read_catalog(settings)
    study = Study(Path(settings.logs), settings.name, catalog.fingerprint())
    images = Images(settings, catalog)
    steps = plan(settings, catalog, images)
    todo = [s for s in steps if not s.skipped and not study.is_kept(s, steps)]

    # ------------------------------------------------------------------ what will be done
    estimates = dict.fromkeys([s.name for s in steps], 0.0)
    if any(s.network for s in todo):
        images.load()  # a file that cannot be read, and a leak, stop a study here
    speed = measure([s.network for s in todo if s.network], settings)
    estimates |= {s.name: s.seconds(speed) for s in todo}
    log.info("%s", plan_table(settings, steps, [s.name for s in todo], estimates))

    # ------------------------------------------------------------------ step by step
    study.begin(settings, catalog)
    spent = foreseen = 0.0
    for number, step in enumerate(steps, 1):
        if step.skipped:
            continue
        if study.is_kept(step, steps):
            study.take(step)
            continue
        # What is left goes by how wrong the estimates of trainings were so far.
        pace = spent / foreseen if foreseen else 1.0
        left = pace * sum(estimates[s.name] for s in steps[number - 1 :])
        log.info(
            "\n[%d/%d] %s: %s of about %s left",
            *(number, len(steps), step.title, format_duration(pace * estimates[step.name])),
            format_duration(left),
        )
        try:
            with study.running(step):
                step.work(*study.task_of(step))
        except KeyboardInterrupt:
            log.info("stopped; what is finished is kept, and the same command goes on")
            raise
        if step.network:
            spent, foreseen = spent + study.seconds(step), foreseen + estimates[step.name]
        keras.backend.clear_session()

    # ------------------------------------------------------------------ report
    study.finish(settings, steps)
    path = write_report(study.directory)
    log.info("\nreport: %s", path)
    return path


def read_catalog(settings: RunStudy) -> data_catalog.Catalog:
    """The catalogue of the study; UserError where it cannot be told healthy from pneumonia."""
    catalog = loading.open_catalog(settings.data, seed=settings.seed)
    log.info(checks.describe(catalog))
    if unknown := set(catalog.findings) - {"normal", "pneumonia", "bacterial", "viral"}:
        raise UserError(
            f"{settings.data}: label '{min(unknown)}' is neither normal nor a pneumonia, which is "
            "what a study is about; for labels of your own use compare_backbones.py --task labels"
        )
    checks.check(catalog, task="binary", allow_leakage=settings.allow_leakage)
    return catalog
