"""Run all five jobs on one catalogue and write a report.

    python scripts/run_study.py --preset quickstart
    python scripts/run_study.py --data chest_xray --name mine

Each step has its own run directory. `study.json` maps the fingerprint of a step's settings and data
to this directory. A finished step with the same fingerprint is not repeated; a changed step gets a
new run, with -2, -3, ... appended to its name. The settings of a step contain the names of the runs
that it depends on, so that a new classifier leads to new nearest neighbours and heatmaps, and to
nothing else.
"""

import logging
from pathlib import Path

import keras

from cxr_tf.config import RunStudy
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, loading
from cxr_tf.errors import UserError
from cxr_tf.serving.store import versions
from cxr_tf.study.compare_studies import compare_studies
from cxr_tf.study.followers import TRAININGS, announce, follow
from cxr_tf.study.plan import Images, plan
from cxr_tf.study.presets import resolve
from cxr_tf.study.report import write_report
from cxr_tf.study.state import Study
from cxr_tf.study.timing import measure, plan_table
from cxr_tf.training.distribution import Workers, connect
from cxr_tf.training.epochs import format_duration

log = logging.getLogger(__name__)


def run_study(settings: RunStudy) -> Path:
    """Run every step that is not finished yet, write the report, and return its path.

    If `settings.compare` is given, print the changes between two studies instead of running one,
    and return the folder of the second. Raises UserError for a user's mistake, if possible before
    anything is written.
    """
    if settings.compare:
        compare_studies(settings)
        return Path(settings.compare[-1])
    settings = resolve(settings)
    workers = connect(settings.worker_timeout)
    with workers.failing_together():
        workers.agree_on_settings("run_study", settings)
        path = _run(settings, workers)
        workers.exchange()  # the others wait here until the chief has finished
    return path


def _run(settings: RunStudy, workers: Workers) -> Path:
    # Each job traces its functions once, but after a dozen jobs TensorFlow warns of retracing.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if workers.is_chief:
        versions.check_saved_models(settings.saved_models)
    catalog = read_catalog(settings)
    workers.agree_on_data(catalog.fingerprint())
    images = Images(settings, catalog)
    if not workers.is_chief:
        follow(settings, images, workers)
        return Path(settings.logs) / "study" / settings.name
    study = Study(Path(settings.logs), settings.name, catalog.fingerprint())
    steps = plan(settings, catalog, images)
    todo = [s for s in steps if not s.skipped and not study.is_kept(s, steps)]

    # ------------------------------------------------------------------ plan
    estimates = dict.fromkeys([s.name for s in steps], 0.0)
    if any(s.network for s in todo):
        announce(workers, "images")
        images.load()  # unreadable files and leakage stop a study here
    speed = measure([s.network for s in todo if s.network], settings)
    estimates |= {s.name: s.seconds(speed) for s in todo}
    log.info("%s", plan_table(settings, steps, [s.name for s in todo], estimates))

    # ------------------------------------------------------------------ steps
    study.start(settings, catalog)
    spent = estimated = 0.0
    for number, step in enumerate(steps, 1):
        if step.skipped:
            continue
        if study.is_kept(step, steps):
            study.take(step)
            continue
        # Scale the estimates by the ratio of the actual to the estimated training time so far.
        pace = spent / estimated if estimated else 1.0
        left = pace * sum(estimates[s.name] for s in steps[number - 1 :])
        log.info(
            "\n[%d/%d] %s: about %s, and about %s for all remaining steps",
            *(number, len(steps), step.title, format_duration(pace * estimates[step.name])),
            format_duration(left),
        )
        try:
            with study.running(step):
                task = study.task_of(step)
                if step.job in TRAININGS:
                    announce(workers, step.job, *task)
                step.work(*task)
        except KeyboardInterrupt:
            log.info("stopped; finished steps are kept, and the same command resumes the study")
            raise
        if step.network:
            spent, estimated = spent + study.seconds(step), estimated + estimates[step.name]
        keras.backend.clear_session()

    announce(workers, "end")

    # ------------------------------------------------------------------ report
    study.finish(settings, steps)
    path = write_report(study.directory)
    log.info("\nreport: %s", path)
    return path


def read_catalog(settings: RunStudy) -> data_catalog.Catalog:
    """Return the catalogue of the study; raise UserError for labels that it does not support."""
    catalog = loading.open_catalog(settings.data, seed=settings.seed)
    log.info(checks.describe(catalog))
    if unknown := set(catalog.findings) - {"normal", "pneumonia", "bacterial", "viral"}:
        raise UserError(
            f"{settings.data}: a study needs the labels normal and pneumonia (or bacterial and "
            f"viral), not '{min(unknown)}'; for other labels use compare_backbones.py --task labels"
        )
    checks.check(catalog, task="binary", allow_leakage=settings.allow_leakage)
    return catalog
