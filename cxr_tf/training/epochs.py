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


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: judge the averaged weights, log, save; stops on NaN and on patience.

    `judge(epoch)` returns {epoch, val_*, selection_loss} of the model as it stands, or raises
    FloatingPointError; each `val..._<metric>` becomes a scalar in TensorBoard. `line` puts the
    entry into words.
    """

    def __init__(
        self,
        trainer: keras.Model,
        judge: Callable[[int], dict[str, float]],
        state: TrainingState,
        writer: tf.summary.SummaryWriter,
        *,
        epochs: int,
        patience: int,
        line: Callable[[dict[str, float]], str],
    ) -> None:
        super().__init__()
        self._trainer, self._judge, self._state, self._writer = trainer, judge, state, writer
        self._epochs, self._patience, self._line = epochs, patience, line
        self._started = time.perf_counter()
        self._first_epoch = state.epochs_done()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Stops a run whose loss is no number; the checkpoint of the last epoch stays."""
        if logs and not np.isfinite(logs["loss"]):
            self._diverged("the loss", f"{logs['loss']} at step {batch + 1}")

    def _diverged(self, what: str, became: str) -> NoReturn:
        epoch = self._state.epochs_done() + 1
        kept = "the checkpoint before it is kept" if self._state.exists() else "no checkpoint yet"
        raise UserError(
            f"{what} became {became} of epoch {epoch}; {kept}; "
            "try a lower --learning-rate, or --precision float32"
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Judges the averaged weights, logs and saves; training goes on with the raw ones."""
        logs = logs or {}
        variables = all_variables(self._trainer)
        # The loss of the epoch's last step is that before its update, and cannot tell.
        if not all(is_finite(v) for v in variables):
            self._diverged("a weight", "no finite number at the end")
        is_last = epoch + 1 == self._epochs
        # Nothing goes on from the last. Copies; np.array would make a second one.
        raw = [] if is_last else [v.value.numpy() for v in variables]
        rate = float(self._trainer.optimizer.learning_rate)
        # Not by Keras's SwapEMAWeights: it swaps by sums and differences, which rounds, and a run
        # resumed from what was saved would not be the undisturbed one.
        self._trainer.optimizer.finalize_variable_values(self._trainer.trainable_variables)
        try:
            judged = self._judge(epoch + 1)
        except FloatingPointError:
            self._diverged("the output", "no finite number at the end")
        entry = {
            **judged,
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
            for key in judged:
                if key.startswith("val"):
                    tf.summary.scalar("/".join(key.rsplit("_", 1)), judged[key])
        self._writer.flush()
        left = (self._epochs - epoch - 1) * spent / (epoch + 1 - self._first_epoch)
        log.info("  %s, %s left", self._line(entry), format_duration(left))
        if self._state.exhausted(self._patience):
            log.info("  no better validation for %d epochs: stopped", self._patience)
            self._trainer.stop_training = True


def format_duration(seconds: float) -> str:
    """Seconds or minutes, as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
