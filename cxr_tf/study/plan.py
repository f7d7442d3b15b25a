"""The steps of a study, in order."""

import functools
from dataclasses import replace
from typing import get_args

from cxr_tf.anomaly import train_autoencoder
from cxr_tf.classification import compare_backbones, train_classifier
from cxr_tf.config import BackboneName, PrepareData, RunStudy, TrainClassifier
from cxr_tf.data import catalog as data_catalog
from cxr_tf.data import checks, dataset
from cxr_tf.data.acquisition import audit
from cxr_tf.errors import UserError
from cxr_tf.explain import explain
from cxr_tf.models import backbones
from cxr_tf.models.occlusion import occluder
from cxr_tf.neighbors import fit_knn
from cxr_tf.runs import Run
from cxr_tf.serving import check_served
from cxr_tf.study.data_step import inspect_data
from cxr_tf.study.presets import (
    PRESETS,
    autoencoder_settings,
    classifier_settings,
    comparison_settings,
    heatmap_count,
    heatmaps_settings,
    neighbours_settings,
    served_settings,
)
from cxr_tf.study.steps import BACKBONE_NAMES, TASKS, Step, keep_settings, label_of, named
from cxr_tf.study.timing import OVERHEAD, autoencoder_seconds, classifier_seconds
from cxr_tf.training.distribution import connect


class Images:
    """The decoded radiographs, which are loaded when a training job first needs them."""

    def __init__(self, settings: RunStudy, catalog: data_catalog.Catalog) -> None:
        self._settings, self._catalog = settings, catalog
        self._data: dataset.ImageDataset | None = None

    def load(self) -> dataset.ImageDataset:
        """Return all images with the labels of the binary task."""
        if self._data is None:
            size = self._settings.image_size
            assert size is not None
            catalog, images = dataset.decode_catalog(
                self._catalog,
                size,
                skip=self._settings.skip_unreadable,
                load=connect(self._settings.worker_timeout).load_images,
            )
            checks.check(catalog, task="binary", allow_leakage=self._settings.allow_leakage)
            classes = catalog.classes("binary")
            data = dataset.ImageDataset(catalog, images, catalog.labels("binary"), classes)
            self._data = audit.audited(data)
        return self._data

    def of_task(self, task: str) -> dataset.ImageDataset:
        """Return all images with the labels of a task."""
        data = self.load()
        checks.check(data.catalog, task=task, allow_leakage=self._settings.allow_leakage)
        return replace(data, labels=data.catalog.labels(task), classes=data.catalog.classes(task))


def plan(settings: RunStudy, catalog: data_catalog.Catalog, images: Images) -> list[Step]:
    """Return all steps in order; `skipped` is the reason why the data do not support a step."""
    counts = {s: len(catalog.rows(s)) for s in data_catalog.SPLITS}
    unsupported = {task: _reason_unsupported(catalog, task) for task in TASKS}
    healthy = sum(r.split == "train" and r.finding == "normal" for r in catalog.radiographs)

    def inspect(job: PrepareData, run_name: str) -> Run:
        return inspect_data(job, catalog, run_name)

    def train(job: TrainClassifier, run_name: str) -> Run:
        return train_classifier.train_classifier(
            replace(job, name=run_name), images.of_task(job.task)
        )

    steps = [
        Step(
            name="data",
            title="inspect the data",
            job="data",
            run_name=f"{settings.name}-data",
            settings=lambda runs: PrepareData(
                check=settings.data, seed=settings.seed, logs=settings.logs
            ),
            work=inspect,
            seconds=lambda speed: 5 + 0.004 * len(catalog),
        )
    ]
    for task, description in TASKS.items():
        label = label_of(task)
        for backbone in get_args(BackboneName):
            steps.append(
                Step(
                    name=f"{label}-{backbone}",
                    title=f"train {BACKBONE_NAMES[backbone]}: {description}",
                    job="classifier",
                    run_name=f"{settings.name}-{label}-{backbone}",
                    settings=functools.partial(classifier_settings, settings, task, backbone),
                    work=train,
                    seconds=functools.partial(classifier_seconds, settings, task, backbone, counts),
                    network=backbone,
                    skipped=unsupported[task],
                )
            )
        steps.append(
            Step(
                name=label,
                title=f"compare backbones on the test set: {description}",
                job="compare",
                run_name=f"{settings.name}-{label}",
                settings=functools.partial(comparison_settings, settings, task),
                work=named(compare_backbones.compare_backbones),
                seconds=lambda speed: 4.0,
                skipped=unsupported[task],
            )
        )
    for task in PRESETS[settings.preset].neighbours_of:
        label = label_of(task)
        steps.append(
            Step(
                name=f"{label}-knn",
                title=f"nearest neighbours and t-SNE: {TASKS[task]}",
                job="knn",
                run_name=f"{settings.name}-{label}-knn",
                settings=functools.partial(neighbours_settings, settings, label),
                work=named(fit_knn.fit_knn),
                # Three passes: all images, perturbed validation images, all before training.
                seconds=lambda speed: (
                    OVERHEAD["knn"]
                    + len(catalog) * (0.015 + 2.5 * max(speed.inference.values(), default=0.0))
                ),
                skipped=unsupported[task],
            )
        )
    detector = autoencoder_settings(settings)
    steps.append(
        Step(
            name="autoencoder",
            title="train the autoencoder on healthy images",
            job="autoencoder",
            run_name=f"{settings.name}-autoencoder",
            settings=functools.partial(keep_settings, detector),
            work=named(train_autoencoder.train_autoencoder),
            seconds=functools.partial(autoencoder_seconds, detector, counts, healthy),
            network="autoencoder",
            skipped=""
            if healthy >= train_autoencoder.FEWEST_HEALTHY
            else f"too few healthy training images ({healthy}; at least "
            f"{train_autoencoder.FEWEST_HEALTHY} are needed)",
        )
    )
    patches = occluder.make_grid(settings.image_size or backbones.SMALLEST_SIZE).count
    steps.append(
        Step(
            name="heatmaps",
            title="occlusion heatmaps of the selected classifier",
            job="explain",
            run_name=f"{settings.name}-heatmaps",
            settings=functools.partial(heatmaps_settings, settings),
            work=named(explain.explain),
            # Sharing computation between patches saves about half of the time.
            seconds=lambda speed: (
                10.0
                + heatmap_count(settings) * patches * max(speed.inference.values(), default=0.0) / 2
            ),
        )
    )
    exported = [
        s.name for s in steps if not s.skipped and s.job in ("compare", "knn", "autoencoder")
    ]
    steps.append(
        Step(
            name="served",
            title="verify the exported models",
            job="served",
            run_name=f"{settings.name}-served",
            settings=functools.partial(served_settings, settings, tuple(exported)),
            work=named(check_served.check_served),
            seconds=lambda speed: (
                15.0 + 5 * counts["test"] * max(speed.inference.values(), default=0.0)
            ),
        )
    )
    return steps


def _reason_unsupported(catalog: data_catalog.Catalog, task: str) -> str:
    """Return the reason why the data do not support a task, or "" if they do."""
    try:
        # Leakage has been checked before.
        checks.check(catalog, task=task, allow_leakage=True)
    except UserError as error:
        return str(error).removeprefix(f"{catalog.source}: ")
    return ""
