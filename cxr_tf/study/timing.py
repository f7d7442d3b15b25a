"""Estimate how long a study takes, from one timed step of each network."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from cxr_tf import console
from cxr_tf.anomaly.resolved import default_epochs
from cxr_tf.classification import fitting
from cxr_tf.config import RunStudy, TrainAutoencoder
from cxr_tf.models import autoencoder, backbones
from cxr_tf.models import weights as models_weights
from cxr_tf.models.classifier import build_classifier
from cxr_tf.study.presets import PRESETS, training_budget, transfers_from_binary
from cxr_tf.study.steps import Speed, Step, first_given
from cxr_tf.training.epochs import format_duration
from cxr_tf.training.precision import resolve_precision

# Seconds that a job takes besides its training steps: for tracing, export, figures and intervals.
# They were measured on two cores in the quickstart; estimates are rough, and shown with "about".
OVERHEAD = {"resnet50": 40.0, "vgg16": 15.0, "alexnet": 15.0, "knn": 20.0, "autoencoder": 15.0}


def classifier_seconds(
    settings: RunStudy, task: str, backbone: str, counts: dict[str, int], speed: Speed
) -> float:
    """Estimate the seconds that training and evaluating one classifier take."""
    training, inference = speed.training[backbone], speed.inference[backbone]
    epochs = training_budget(settings, task).epochs
    validation = 2 * counts["val"] * inference  # unchanged and perturbed
    seconds = epochs * (counts["train"] * training + validation)
    if transfers_from_binary(settings, task) or getattr(settings, f"{backbone}_weights") != "none":
        # The head is trained on features of the frozen backbone.
        seconds += counts["train"] * inference + validation
    overhead = OVERHEAD[backbone] if epochs else OVERHEAD[backbone] / 2  # no training step to trace
    return overhead + seconds + validation + counts["test"] * inference


def autoencoder_seconds(
    one: TrainAutoencoder, counts: dict[str, int], healthy: int, speed: Speed
) -> float:
    """Estimate the seconds that training and evaluating the autoencoder take."""
    training, inference = speed.training["autoencoder"], speed.inference["autoencoder"]
    epoch = healthy * training + counts["val"] * inference
    epochs = one.epochs or default_epochs(healthy, one.batch_size, plain=one.model == "plain")
    # Every score is computed on the validation set, two perturbed copies of it, and the test set.
    evaluation = (
        (3 * counts["val"] + counts["test"]) * len(autoencoder.scores_of(one.model)) * inference
    )
    return OVERHEAD["autoencoder"] + epochs * epoch + evaluation


def measure(networks: Sequence[str], settings: RunStudy) -> Speed:
    """Time a training step and inference of each network on a few and on many images.

    The networks run eagerly, because tracing would take longer than everything else here. The
    difference of the two timings removes the constant overhead of each operation.

    Raises UserError for weights that are not available: better now than after hours of training.
    """
    training, inference = {}, {}
    keras.utils.set_random_seed(settings.seed)
    for network in dict.fromkeys(networks):
        if network == "autoencoder":
            preset = PRESETS[settings.preset]
            size = first_given(preset.autoencoder_image_size, TrainAutoencoder().image_size)
            model, channels = autoencoder.build_network("denoising", size), 1
            size = int(model.input_shape[1])
            batch_size = TrainAutoencoder().batch_size
        else:
            assert settings.image_size and settings.batch_size
            size, channels, batch_size = settings.image_size, 3, settings.batch_size
            pretrained = getattr(settings, f"{network}_weights") != "none"
            model = fitting.training_model(
                _classifier(network, settings), network, pretrained=pretrained
            )
        count = int(min(batch_size, max(4, 8 * (224 / size) ** 2)))
        images = tf.random.stateless_uniform([count, size, size, channels], [0, 1]) * 255
        training[network] = _seconds_an_image(functools.partial(_training_step, model), images)
        inference[network] = _seconds_an_image(functools.partial(model, training=False), images)
        del model
        keras.backend.clear_session()
    return Speed(training, inference)


def _seconds_an_image(work: Callable[[tf.Tensor], Any], images: tf.Tensor) -> float:
    few, many = images[: len(images) // 4], images
    for batch in (many, few):  # warm-up of each shape
        work(batch)
    seconds = []
    for batch in (few, many):
        started = time.perf_counter()
        work(batch)
        seconds.append(time.perf_counter() - started)
    # On a busy machine, the small batch may be delayed: the second value keeps the result positive.
    return max((seconds[1] - seconds[0]) / (len(many) - len(few)), seconds[1] / len(many) / 4)


def _classifier(backbone: str, settings: RunStudy) -> keras.Model:
    """Build a classifier in its state at the start of training."""
    assert settings.image_size
    weights = getattr(settings, f"{backbone}_weights")
    entry = backbones.backbone(backbone)
    gains = entry.gains_in_bfloat16(settings.image_size, weights != "none")
    precision = resolve_precision("auto", gains=gains)
    model = build_classifier(
        backbone, classes=2, image_size=settings.image_size, precision=precision
    )
    models_weights.load_weights(model, backbone, weights, flag=f"--{backbone}-weights")
    blocks = len(entry.blocks) if weights == "none" else entry.tuned_blocks
    backbones.freeze(model, backbone, trainable_blocks=blocks, batch_norm=weights == "none")
    return model


def _training_step(model: keras.Model, images: tf.Tensor) -> None:
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        parts = outputs.values() if isinstance(outputs, dict) else [outputs]
        loss = tf.add_n([tf.reduce_mean(tf.cast(part, tf.float32) ** 2) for part in parts])
    tape.gradient(loss, [v.value for v in model.trainable_variables])


def plan_table(
    settings: RunStudy, steps: Sequence[Step], todo: Sequence[str], estimates: dict[str, float]
) -> str:
    """Return the plan as text: each step with its estimated duration."""
    total = sum(estimates[name] for name in todo)
    estimate = f"about {format_duration(total)}, extrapolated from one training step per network"
    lines = [f"\nstudy {settings.name}: {estimate if todo else 'all steps are finished'}"]
    rows = []
    for number, step in enumerate(steps, 1):
        state = f"about {format_duration(estimates[step.name])}"
        if step.skipped:
            state = f"skipped: {step.skipped}"
        elif step.name not in todo:
            state = "finished earlier, reused"
        rows.append([number, step.title, state])
    return "\n".join([*lines, console.table(["", "step", "time"], rows, indent=2)])
