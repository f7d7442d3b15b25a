"""A run directory, with methods that read and write its files."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cxr_tf.errors import UserError
from cxr_tf.files import damaged, release_lock, write_atomically, write_csv
from cxr_tf.runs import config_json, metrics_json

if TYPE_CHECKING:
    import tensorflow as tf
    from matplotlib.figure import Figure


# Columns of prediction tables that contain text.
TEXT_COLUMNS = {"path", "patient", "finding", "label", "predicted", "prediction_set", "reason"}


class Catalog(Protocol):
    """The part of `cxr_tf.data.catalog.Catalog` that a run records."""

    @property
    def radiographs(self) -> Sequence[Any]:
        """The images, in order."""

    @property
    def is_phantom(self) -> bool:
        """Whether the images are synthetic."""

    def fingerprint(self) -> str:
        """Return a hash of the findings, patients, splits and contents."""

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, with methods that read and write its files."""

    directory: Path

    @property
    def finished(self) -> bool:
        """Whether the run completed."""
        return (self.directory / metrics_json.METRICS).exists()

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`; raises FileNotFoundError while the run is unfinished."""
        return metrics_json.read_metrics(self.directory)

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`, with settings under their present names."""
        return config_json.read_config(self.directory)

    @property
    def figures(self) -> dict[str, Path]:
        """The figures of the run by name: figures/<name>.png."""
        return {path.stem: path for path in sorted((self.directory / "figures").glob("*.png"))}

    def predictions(self, split: str) -> dict[str, np.ndarray]:
        """Return the columns of `predictions-<split>.csv`, each [N].

        Probabilities, scores and percentiles are float64, everything else is text. Raises UserError
        if the run has no predictions for the split.
        """
        file = self.directory / f"predictions-{split}.csv"
        try:
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines, strict=True))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has too many or too few values")
            columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
            return {
                name: np.array(values, None if name in TEXT_COLUMNS else np.float64)
                for name, values in columns.items()
            }
        except FileNotFoundError:
            raise UserError(f"{self.directory} has no predictions for the {split} split") from None
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise damaged(file, str(error)) from None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`, which also marks the run as finished."""
        metrics_json.write_metrics(self.directory, metrics)
        release_lock(self.directory)

    def write_predictions(
        self,
        split: str,
        catalog: Catalog,
        labels: np.ndarray,
        probabilities: np.ndarray,
        predicted: np.ndarray,
        classes: tuple[str, ...],
        *,
        extra: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Write `predictions-<split>.csv`: path, patient, label, probabilities, predicted class.

        extra: further columns, [N] each.
        """
        extra = extra or {}
        rows = zip(catalog.radiographs, labels, probabilities, predicted, strict=True)
        write_csv(
            self.directory / f"predictions-{split}.csv",
            ["path", "patient", "label", *classes, "predicted", *extra],
            [
                [r.path, r.patient, classes[y], *(f"{v:.8g}" for v in p), classes[k]]
                + [values[i] for values in extra.values()]
                for i, (r, y, p, k) in enumerate(rows)
            ],
        )

    def write_figure(self, name: str, figure: "Figure", writer: "tf.summary.SummaryWriter") -> None:
        """Write `figures/<name>.png`, and the same picture to TensorBoard."""
        import tensorflow as tf
        from matplotlib import pyplot as plt

        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))
        plt.close(figure)
        with writer.as_default():
            tf.summary.image(name, tf.io.decode_png(path.read_bytes(), channels=3)[None], step=0)

    def writer(self) -> "tf.summary.SummaryWriter":
        """Return TensorBoard's event writer for this run."""
        import tensorflow as tf

        return tf.summary.create_file_writer(str(self.directory))
