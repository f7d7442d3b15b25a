"""Autoencoder settings with a value for everything that the command line leaves open."""

import dataclasses
import math
from dataclasses import dataclass

from cxr_tf.config import TrainAutoencoder
from cxr_tf.data import batches
from cxr_tf.runs import Run

# Longer training of the denoising network reduces its loss but does not improve its score; with
# fewer than FEWEST_STEPS steps the network is undertrained.
EPOCHS, FEWEST_STEPS, MOST_EPOCHS, PLAIN_EPOCHS = 8, 500, 60, 30


@dataclass(frozen=True, kw_only=True)
class ResolvedAutoencoder(TrainAutoencoder):
    """`TrainAutoencoder` with a number of epochs."""

    epochs: int


def resolve(settings: TrainAutoencoder, healthy: int, previous_run: Run) -> ResolvedAutoencoder:
    """Return the settings with a number of epochs.

    healthy: the number of healthy training images, which determines the default. A resumed run
    keeps its recorded number of epochs; otherwise, if images have been added since, the error would
    report changed settings instead of changed data.
    """
    epochs = settings.epochs
    if epochs is None and settings.resume and (previous_run.directory / "config.json").exists():
        epochs = previous_run.config["settings"]["epochs"]
    if epochs is None:
        epochs = default_epochs(healthy, settings.batch_size, plain=settings.model == "plain")
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return ResolvedAutoencoder(**{**values, "epochs": epochs})


def default_epochs(healthy: int, batch_size: int, *, plain: bool = False) -> int:
    """Return the default number of epochs for a number of healthy training images."""
    if plain:
        return PLAIN_EPOCHS
    steps = batches.steps_per_epoch(healthy, min(batch_size, healthy))
    return max(EPOCHS, min(math.ceil(FEWEST_STEPS / steps), MOST_EPOCHS))
