"""Classifier settings with a value for everything that the command line leaves open."""

import dataclasses
from dataclasses import dataclass

from cxr_tf.config import Precision, TrainClassifier
from cxr_tf.models import backbones
from cxr_tf.runs import Run
from cxr_tf.training import precision as training_precision
from cxr_tf.training.distribution import Workers


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(TrainClassifier):
    """`TrainClassifier` with values for precision, trainable blocks and learning rate."""

    precision: Precision
    trainable_blocks: int
    learning_rate: float


def resolve(settings: TrainClassifier, previous_run: Run | None = None) -> ResolvedTraining:
    """Return the settings with values for precision, trainable blocks and learning rate.

    previous_run: an existing run of the same name. A resumed run keeps its recorded values, even if
    this machine or this version would choose different ones.
    """
    if (
        previous_run is not None
        and settings.resume
        and (previous_run.directory / "config.json").exists()
    ):
        settings = dataclasses.replace(settings, **previous_run.config.get("resolved", {}))
    entry = backbones.backbone(settings.backbone)
    pretrained = settings.weights != "none"
    blocks = settings.trainable_blocks
    if blocks is None:
        blocks = entry.tuned_blocks if pretrained else len(entry.blocks)
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values["precision"] = training_precision.resolve_precision(
        settings.precision, gains=entry.gains_in_bfloat16(settings.image_size, pretrained)
    )
    values["trainable_blocks"] = blocks
    values["learning_rate"] = settings.learning_rate or (1e-4 if pretrained else entry.scratch_rate)
    return ResolvedTraining(**values)


def resolve_together(settings: TrainClassifier, run: Run, workers: Workers) -> ResolvedTraining:
    """Resolve the settings like the chief, whose processor may differ from this worker's."""
    resolved = resolve(settings, run)
    values = workers.broadcast(
        {key: getattr(resolved, key) for key in ("precision", "trainable_blocks", "learning_rate")}
    )
    return dataclasses.replace(resolved, **values)
