"""The run directory `logs/<job>/<name>/`: settings, metrics, predictions, figures, TensorBoard.

A run is finished if `metrics.json` exists, which is written last. Every file is written atomically.
"""

from cxr_tf.runs.opening import (
    check_name,
    is_foreign,
    numbered_names,
    open_finished_run,
    open_run,
    reserve_run,
    start_run,
    to_run_name,
)
from cxr_tf.runs.record import NOT_COMPARED, RECORDED_PACKAGES, run_record
from cxr_tf.runs.run import Catalog, Run

__all__ = [
    "NOT_COMPARED",
    "RECORDED_PACKAGES",
    "Catalog",
    "Run",
    "check_name",
    "is_foreign",
    "numbered_names",
    "open_finished_run",
    "open_run",
    "reserve_run",
    "run_record",
    "start_run",
    "to_run_name",
]
