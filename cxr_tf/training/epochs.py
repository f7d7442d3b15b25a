"""The end of an epoch: evaluate the averaged weights, log, save a checkpoint, stop early."""

import logging
import time
from collections.abc import Callable
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.training.checkpoints import TrainingState, all_variables, is_finite

log = logging.getLogger(__name__)


class EpochEnd:
    """Evaluate the averaged weights after each epoch, log, save a checkpoint, and stop early.

    `evaluate(epoch)` returns {epoch, val_*, selection_loss} for the model with its current weights,
    or raises FloatingPointError if an output is not finite; each `val..._<metric>` becomes a scalar
    in TensorBoard. `line` formats an entry for the log. Training ends after `patience` epochs
    without improvement, and with UserError if the loss, a weight or an output is not finite.
    """

    def __init__(
        self,
        trainer: keras.Model,
        evaluate: Callable[[int], dict[str, float]],
        state: TrainingState,
        writer: tf.summary.SummaryWriter,
        *,
        epochs: int,
        patience: int,
        line: Callable[[dict[str, float]], str],
    ) -> None:
        self._trainer, self._evaluate, self._state = trainer, evaluate, state
        self._writer = writer
        self._epochs, self._patience, self._line = epochs, patience, line
        self._started = time.perf_counter()
        self._first_epoch = state.epochs_done()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Raise UserError if the loss is not finite; the last checkpoint remains."""
        if not np.isfinite(logs["loss"]):
            self._diverged(f"the loss became {logs['loss']} at step {batch + 1}")

    def _diverged(self, problem: str) -> NoReturn:
        epoch = self._state.epochs_done() + 1
        checkpoint = (
            "the checkpoint of the previous epoch is kept"
            if self._state.exists()
            else "there is no checkpoint yet"
        )
        # Autoencoders, which are always float32, have no --precision.
        lower = any(layer.compute_dtype.endswith("float16") for layer in self._trainer.layers)
        precision = ", or --precision float32" if lower else ""
        raise UserError(
            f"{problem} of epoch {epoch}; {checkpoint}; try a lower --learning-rate{precision}"
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Evaluate the averaged weights, log and save; training continues with the raw weights."""
        variables = all_variables(self._trainer)
        # The last loss is computed before the last update, so the weights are checked too.
        if not all(is_finite(v) for v in variables):
            self._diverged("a weight was not finite at the end")
        is_last = epoch + 1 == self._epochs
        # Training does not resume from the last epoch. `numpy()` copies.
        raw = [] if is_last else [v.value.numpy() for v in variables]
        rate = float(self._trainer.optimizer.learning_rate)
        # Not with Keras's SwapEMAWeights: it swaps by adding and subtracting, and the rounding
        # would make a resumed run differ from an uninterrupted one.
        self._trainer.optimizer.finalize_variable_values(self._trainer.trainable_variables)
        try:
            scores = self._evaluate(epoch + 1)
        except FloatingPointError:
            self._diverged("the output was not finite at the end")
        entry = {
            **scores,
            "train_loss": float(logs["loss"]),
            "learning_rate": rate,
        }
        spent = time.perf_counter() - self._started
        self._state.save(entry, self._trainer, raw)
        if raw:
            for variable, value in zip(variables, raw, strict=True):
                variable.assign(value)
        with self._writer.as_default(step=epoch + 1):
            tf.summary.scalar("train/learning_rate", rate)
            for key in logs:
                tf.summary.scalar(f"train/{key}", float(logs[key]))
            for key, value in scores.items():
                if key.startswith("val"):
                    tf.summary.scalar("/".join(key.rsplit("_", 1)), value)
        self._writer.flush()
        left = (self._epochs - epoch - 1) * spent / (epoch + 1 - self._first_epoch)
        log.info("  %s, %s left", self._line(entry), format_duration(left))
        if self._state.exhausted(self._patience):
            epochs = f"{self._patience} epoch{'s' if self._patience > 1 else ''}"
            log.info("  no improvement on validation for %s: training stops", epochs)
            self._trainer.stop_training = True


def format_duration(seconds: float) -> str:
    """Format a duration in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
