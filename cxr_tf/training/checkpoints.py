"""Checkpoints: what a killed training needs to resume."""

import time
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.files import write_arrays


class TrainingState:
    """What a killed training needs to go on: `checkpoint.npz` and `best.npz` in the run directory.

    The checkpoint holds every variable of model (dropout's seeds included) and optimizer, and the
    history; `best.npz` the averaged weights of the best epoch. Both are replaced whole. Its clock
    runs from when it is made.
    """

    def __init__(self, directory: Path) -> None:
        self._checkpoint, self._best = directory / "checkpoint.npz", directory / "best.npz"
        self.history: list[dict[str, float]] = []
        self._started, self._before = time.perf_counter(), 0.0
        if self._checkpoint.exists():
            stored = _stored(self._checkpoint, "history_keys", "history", "seconds")
            self.history = [
                dict(zip(stored["history_keys"].tolist(), row, strict=True))
                for row in stored["history"].tolist()
            ]
            for entry in self.history:
                entry["epoch"] = int(entry["epoch"])
            self._before = float(stored["seconds"])

    def exists(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._checkpoint.exists()

    @property
    def seconds(self) -> float:
        """Of this process, and of those before it up to the checkpoint that each left."""
        return self._before + time.perf_counter() - self._started

    def epochs_done(self) -> int:
        """Epochs of fine-tuning that are behind."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def best(self) -> dict[str, float]:
        """The history's entry with the lowest selection loss; the earliest of equals."""
        return min(self.history, key=lambda h: h["selection_loss"])

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return bool(self.history) and self.epochs_done() - self.best()["epoch"] >= patience

    def begin(self, entry: dict[str, float], trainer: keras.Model) -> None:
        """Takes the model before fine-tuning as epoch 0, a candidate like every other."""
        self.history = [{**entry, "train_loss": float("nan"), "learning_rate": 0.0}]
        self._save_best(trainer)

    def save(self, entry: dict[str, float], averaged: keras.Model, raw: list[np.ndarray]) -> None:
        """Records an epoch: the model holds averaged weights, `raw` the variables to go on with.

        `raw` is empty after the last epoch, from which nothing goes on.
        """
        self.history.append(entry)
        if self.best() is entry:
            self._save_best(averaged)
        keys = sorted(entry)
        arrays = {f"v{i:05d}": v for i, v in enumerate(raw)}
        about = {
            "history_keys": np.array(keys),
            "history": np.array([[h.get(k, np.nan) for k in keys] for h in self.history]),
            "seconds": np.array(self.seconds),
        }
        write_arrays(self._checkpoint, about | arrays)

    def load(self, trainer: keras.Model) -> None:
        """Puts the checkpoint's variables into the model and its optimizer.

        Raises UserError for a checkpoint of other variables, such as one of a version before.
        KeyError for the checkpoint of the last epoch, which holds none.
        """
        stored, variables = _stored(self._checkpoint), all_variables(trainer)
        held = [stored[f"v{i:05d}"] for i in range(sum(k.startswith("v") for k in stored))]
        if not held:
            raise KeyError("the checkpoint of the last epoch holds no variables")
        if [v.shape for v in held] != [tuple(v.shape) for v in variables]:
            raise UserError(
                f"{self._checkpoint} does not fit the network: it was written by another "
                "version; choose another --name"
            )
        for variable, value in zip(variables, held, strict=True):
            variable.assign(value)

    def restore_best(self, trainer: keras.Model) -> dict[str, float]:
        """Puts the best epoch's weights into the model; returns its history entry."""
        stored = _stored(self._best)
        trainer.set_weights([stored[f"w{i:05d}"] for i in range(len(trainer.weights))])
        return self.best()

    def remove(self) -> None:
        """Deletes the files; the run is done."""
        self._checkpoint.unlink(missing_ok=True)
        self._best.unlink(missing_ok=True)

    def _save_best(self, trainer: keras.Model) -> None:
        weights = {f"w{i:05d}": w for i, w in enumerate(trainer.get_weights())}
        write_arrays(self._best, weights)


def save_keras(model: keras.Model, path: Path) -> None:
    """Writes a model for `runs.atomically`, whose names have no ending."""
    # Keras insists on the ending, which the name beside has not.
    named = path.with_suffix(".keras")
    try:
        keras.saving.save_model(model, named)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)


def _stored(file: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays in a file of a `TrainingState`, or some of them; UserError where it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error}): nothing can go on from it; choose another --name"
        ) from None


def is_finite(variable: keras.Variable) -> bool:
    """Return whether a variable holds finite numbers only."""
    value = tf.convert_to_tensor(variable.value)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def all_variables(trainer: keras.Model) -> list[keras.Variable]:
    """Return the variables of a compiled model and of its optimizer."""
    return [*trainer.variables, *trainer.optimizer.variables]
