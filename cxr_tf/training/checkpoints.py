"""Checkpoints from which an interrupted training run resumes."""

import json
import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.errors import UserError
from cxr_tf.files import write_arrays
from cxr_tf.training.distribution import Workers


class TrainingState:
    """The checkpoints of a run: `checkpoint.npz` and `best.npz` in its directory.

    `checkpoint.npz` contains all variables of the model (including the seeds of dropout) and of
    the optimizer, and the history; `best.npz` contains the averaged weights of the best epoch. Both
    files are replaced atomically. With several workers, only the chief reads and writes them, and
    sends their content to the other workers. `seconds` counts from the construction of this object.
    """

    def __init__(self, directory: Path, workers: Workers | None = None) -> None:
        self._checkpoint, self._best = directory / "checkpoint.npz", directory / "best.npz"
        self._workers = workers or Workers(tf.distribute.get_strategy())
        self.history: list[dict[str, float]] = []
        self._started, self._before = time.perf_counter(), 0.0
        self._exists = self._workers.is_chief and self._checkpoint.exists()
        if self._exists:
            stored = _load_arrays(self._checkpoint, "history_keys", "history", "seconds")
            self.history = [
                dict(zip(stored["history_keys"].tolist(), row, strict=True))
                for row in stored["history"].tolist()
            ]
            for entry in self.history:
                entry["epoch"] = int(entry["epoch"])
            self._before = float(stored["seconds"])
        self._exists, self.history = self._workers.broadcast([self._exists, self.history])

    def exists(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self._exists

    @property
    def seconds(self) -> float:
        """The training time, including earlier processes up to their last checkpoint."""
        return self._before + time.perf_counter() - self._started

    def epochs_done(self) -> int:
        """Return the number of completed epochs."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def best(self) -> dict[str, float]:
        """Return the history entry with the lowest selection loss; if several tie, the first."""
        return min(self.history, key=lambda h: h["selection_loss"])

    def exhausted(self, patience: int) -> bool:
        """Return whether the last `patience` epochs brought no improvement."""
        return bool(self.history) and self.epochs_done() - self.best()["epoch"] >= patience

    def begin(self, entry: dict[str, float], trainer: keras.Model) -> None:
        """Record the model before fine-tuning as epoch 0, which can be selected like any other."""
        self.history = [{**entry, "train_loss": float("nan"), "learning_rate": 0.0}]
        self._save_best(trainer)

    def save(self, entry: dict[str, float], averaged: keras.Model, raw: list[np.ndarray]) -> None:
        """Record an epoch: `averaged` has the averaged weights, `raw` the variables to resume from.

        `raw` is empty after the last epoch, because training does not resume from it.
        """
        self.history.append(entry)
        self._exists = True
        if not self._workers.is_chief:
            return
        if self.best() is entry:
            self._save_best(averaged)
        keys = sorted(entry)
        arrays = {f"v{i:05d}": v for i, v in enumerate(raw)}
        history = {
            "history_keys": np.array(keys),
            "history": np.array([[h.get(k, np.nan) for k in keys] for h in self.history]),
            "seconds": np.array(self.seconds),
        }
        write_arrays(self._checkpoint, history | arrays)

    def load(self, trainer: keras.Model) -> None:
        """Restore the variables of the model and its optimizer from the checkpoint.

        Raises UserError if the checkpoint has different variables, for example because an earlier
        version wrote it, and KeyError for a checkpoint written after the final epoch, which stores
        no variables.
        """
        variables = all_variables(trainer)
        values = [np.empty(v.shape, v.dtype) for v in variables]
        if self._workers.is_chief:
            stored = _load_arrays(self._checkpoint)
            values = [stored[f"v{i:05d}"] for i in range(sum(k.startswith("v") for k in stored))]
            if not values:
                raise KeyError("the checkpoint of the last epoch has no variables")
            if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
                raise UserError(
                    f"{self._checkpoint} does not fit the network: it was probably written by a "
                    "different version of cxr_tf; choose another --name"
                )
        for variable, value in zip(variables, self._workers.broadcast_arrays(values), strict=True):
            variable.assign(value)

    def restore_best(self, trainer: keras.Model) -> dict[str, float]:
        """Restore the weights of the best epoch; return its history entry."""
        values = [np.empty(v.shape, v.dtype) for v in trainer.weights]
        if self._workers.is_chief:
            stored = _load_arrays(self._best)
            values = [stored[f"w{i:05d}"] for i in range(len(trainer.weights))]
        trainer.set_weights(self._workers.broadcast_arrays(values))
        return self.best()

    def remove(self) -> None:
        """Delete the checkpoints of a completed run."""
        self._checkpoint.unlink(missing_ok=True)
        self._best.unlink(missing_ok=True)

    def _save_best(self, trainer: keras.Model) -> None:
        if not self._workers.is_chief:
            return
        weights = {f"w{i:05d}": w for i, w in enumerate(trainer.get_weights())}
        write_arrays(self._best, weights)


def save_keras(model: keras.Model, path: Path) -> None:
    """Write a model in Keras's format, so that equal models give equal files.

    `files.write_atomically` calls this function. Keras writes dates and the addresses of objects
    into its archive; here consecutive numbers replace the addresses, and the dates are left out.
    """
    archive = path.with_name(f"{path.name}.keras")  # Keras insists on the suffix
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return match[1] + numbers.setdefault(match[2], str(len(numbers) + 1))

    try:
        keras.saving.save_model(model, archive)
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                copy = zipfile.ZipInfo(entry.filename)  # dated 1980
                copy.compress_type, copy.external_attr = entry.compress_type, entry.external_attr
                copy.file_size = entry.file_size
                with source.open(entry) as content, target.open(copy, "w") as out:
                    if entry.filename == "config.json":
                        text = content.read().decode()
                        out.write(re.sub(r'("shared_object_id": )(\d+)', number, text).encode())
                    elif entry.filename == "metadata.json":
                        metadata = json.loads(content.read())
                        metadata.pop("date_saved", None)
                        out.write(json.dumps(metadata).encode())
                    else:
                        shutil.copyfileobj(content, out, 1 << 20)
    finally:
        archive.unlink(missing_ok=True)


def _load_arrays(file: Path, *names: str) -> dict[str, np.ndarray]:
    """Load all or the named arrays of a checkpoint file; raise UserError if it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error}), so the run cannot be resumed; choose another --name"
        ) from None


def is_finite(variable: keras.Variable) -> bool:
    """Return whether all values of a variable are finite."""
    value = tf.convert_to_tensor(variable.value)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def all_variables(trainer: keras.Model) -> list[keras.Variable]:
    """Return the variables of a compiled model and of its optimizer."""
    return [*trainer.variables, *trainer.optimizer.variables]
