"""The dtype policy of training."""

from pathlib import Path

import tensorflow as tf

from cxr_tf.config import Precision


def resolve_precision(wanted: Precision, *, gains: bool = True) -> Precision:
    """Return the dtype policy; for `auto`, mixed_bfloat16 if the hardware supports it natively.

    Native support is AVX512-BF16 or AMX on CPUs, and compute capability 8 or higher on GPUs. gains:
    whether training benefits from bfloat16, see `Backbone.gains_in_bfloat16`; otherwise `auto`
    gives float32.
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
