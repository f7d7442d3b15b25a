"""What every training here shares: precision, averaged AdamW, checkpoints, and the end of an epoch.

A run that is killed at any moment goes on from its last epoch, and ends with the bits of an
undisturbed one.
"""

import logging
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from cxr_tf.data.pipeline import to_rgb
from cxr_tf.errors import UserError
from cxr_tf.runs import write_arrays
from cxr_tf.settings import Precision

log = logging.getLogger(__name__)


def resolve_precision(wanted: Precision, *, gains: bool = True) -> Precision:
    """The dtype policy behind `auto`: bfloat16 where the hardware multiplies it natively.

    On CPUs that is AVX512-BF16 or AMX, on GPUs compute capability 8. gains: whether the network is
    the faster for it and learns as well, see `Backbone.gains_in_bfloat16`.
    """
    if wanted != "auto":
        return wanted
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0))[0] >= 8
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            flags = ""
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return "mixed_bfloat16" if native and gains else "float32"


def distribution() -> tf.distribute.Strategy:
    """All GPUs of this machine by `MirroredStrategy`; with one or none, the default strategy."""
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


class FusedAdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov and Hutter 2019) with the update of a variable in one pass over memory.

    The same numbers as `keras.optimizers.AdamW` but for rounding. Keras's update is a dozen
    operations with as many copies of the variable, and it computes the rate for each variable anew:
    that was a quarter of a step of AlexNet, and a third of the time in which ResNet50 is traced.
    """

    def __init__(self, learning_rate: Any, *, decay: float, **others: Any) -> None:
        super().__init__(learning_rate, **others)
        self._decay = decay

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Decays one variable and updates it by its gradient, of the same shape."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        rate = tf.cast(learning_rate, dtype)
        if self._use_weight_decay(variable):
            variable.assign_sub(variable * (rate * self._decay))
        steps = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.constant(self.beta_1, dtype), steps),
            beta2_power=tf.pow(tf.constant(self.beta_2, dtype), steps),
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, dtype),
        )


def averaged_adamw(
    rate: float, *, steps: int, weight_decay: float, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """AdamW under warm-up and cosine to a hundredth of `rate`, with averaged weights beside.

    steps: all steps of the run. Kernels decay, biases and normalisation do not. Under the precision
    mixed_float16 the loss is scaled, without which small gradients would be 0.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - steps // 20),
        alpha=0.01,
        warmup_target=rate,
        warmup_steps=max(1, steps // 20),
    )
    optimizer = FusedAdamW(
        schedule,
        decay=weight_decay,
        global_clipnorm=1.0,
        use_ema=True,
        # Averages over about a twentieth of the run: long enough to calm the swings from epoch
        # to epoch, short enough to forget the start.
        ema_momentum=1 - 1 / max(2, steps // 20),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # Keras scales by itself only what is compiled as a whole model of that policy, and what is
    # trained here ends at the logits.
    scaled = precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer


def build_all(trainer: keras.Model, targets: Any) -> None:
    """Makes the variables of optimizer, losses and metrics of a compiled model.

    targets: those of one image, as in a batch of training. A step that makes variables is traced a
    second time, and to trace that of ResNet50 takes ten seconds.
    """
    trainer.optimizer.build(trainer.trainable_variables)
    outputs = trainer(tf.zeros([1, *trainer.input_shape[1:]]), training=False)
    trainer.compute_loss(None, targets, outputs)
    trainer.compute_metrics(None, targets, outputs)
    trainer.reset_metrics()


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
            "history": np.array([[h[k] for k in keys] for h in self.history]),
            "seconds": np.array(self.seconds),
        }
        write_arrays(self._checkpoint, about | arrays)

    def load(self, trainer: keras.Model) -> None:
        """Puts the checkpoint's variables into the model and its optimizer.

        Raises UserError for a checkpoint of other variables, such as one of a version before.
        KeyError for the checkpoint of the last epoch, which holds none.
        """
        stored, variables = _stored(self._checkpoint), _all_variables(trainer)
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
        variables = _all_variables(self._trainer)
        # The loss of the epoch's last step is that before its update, and cannot tell.
        if not all(_is_finite(v) for v in variables):
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
        log.info("  %s, %s left", self._line(entry), duration(left))
        if self._state.exhausted(self._patience):
            log.info("  no better validation for %d epochs: stopped", self._patience)
            self._trainer.stop_training = True


def compiled(model: keras.Model) -> tf.types.experimental.GenericFunction:
    """The model in inference as one traced function of float32 [N, S, S, 1], for any N.

    A model of three channels is shown the one three times.
    """
    height, width, channels = model.input_shape[1:]

    def call(images: tf.Tensor) -> Any:
        return model(to_rgb(images) if channels == 3 else images, training=False)

    # Without autograph, which would translate Keras's sources and find nothing to do.
    spec = tf.TensorSpec([None, height, width, 1], tf.float32)
    return tf.function(call, input_signature=[spec], autograph=False)


def infer(function: tf.types.experimental.GenericFunction, batches: tf.data.Dataset) -> np.ndarray:
    """Outputs for all batches in order, float32."""
    return np.concatenate([np.asarray(function(batch), np.float32) for batch in batches])


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


def _is_finite(variable: keras.Variable) -> bool:
    value = tf.convert_to_tensor(variable.value)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))


def _all_variables(trainer: keras.Model) -> list[keras.Variable]:
    return [*trainer.variables, *trainer.optimizer.variables]


def duration(seconds: float) -> str:
    """Seconds or minutes, as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
