"""Time implementations in turn, measure peak memory and time by size; describe the machine."""

import dataclasses
import importlib.util
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from cxr_tf.runs import RECORDED_PACKAGES

T = TypeVar("T")


# A measured call. It may return its seconds as a float, if only a part of it counts; any other
# return value is ignored.
Way = Callable[[], object]

ALTERNATIVES = ("torch", "captum", "monai", "tf-explain", "openvino")


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of each round, and the largest growth of memory during a call, in MB."""

    seconds: list[float]
    grown_mb: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison of this package with one alternative; both process `count` items per round."""

    job: str
    alternative: str
    at_least: float
    ours: Timing
    theirs: Timing
    unit: str
    count: float
    same: bool
    check: str
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The speed-up over the alternative in each round."""
        return [b / a for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """The median speed-up of all rounds."""
        return float(np.median(self.ratios))

    def record(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {
            **dataclasses.asdict(self),
            "ratio": self.ratio,
            "ratio_lowest": min(self.ratios),
            "ratio_highest": max(self.ratios),
            "reached": self.ratio >= self.at_least,
        }


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of one implementation; `at_most` is the limit, or None."""

    job: str
    way: str
    value: float
    unit: str
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the value is within the limit."""
        return self.at_most is None or self.value <= self.at_most

    def record(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {**dataclasses.asdict(self), "reached": self.reached}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds of a job by its number of items; `what` names the items."""

    job: str
    what: str
    sizes: list[int]
    seconds: list[float]

    @property
    def slope(self) -> float:
        """The exponent p of seconds ~ size^p, by least squares on the logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    def record(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {**dataclasses.asdict(self), "slope": self.slope}


@dataclasses.dataclass(frozen=True)
class Bound:
    """A lower bound of a time, or a quantity from which bounds are computed."""

    job: str
    of: str
    value: float
    unit: str

    def record(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A benchmark that could not be run, with the reason."""

    job: str
    alternative: str
    reason: str


Results = Iterator[Row | Memory | Cost | Bound | Skipped]


def in_turn(ways: dict[str, Way], repeats: int, warm_up: bool = True) -> dict[str, Timing]:
    """Time all implementations in each round, in reversed order in every other round."""
    names = list(ways)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    grown = dict.fromkeys(names, 0.0)
    for number in range(-1 if warm_up else 0, repeats):
        for name in names if number % 2 == 0 else names[::-1]:
            before = memory_of_process("VmRSS")
            _reset_peak()
            elapsed = timed(ways[name])
            grown[name] = max(grown[name], memory_of_process("VmHWM") - before)
            if number >= 0:
                seconds[name].append(elapsed)
    return {n: Timing(seconds[n], grown[n]) for n in names}


def by_size(
    prepare: Callable[[int], Way], job: str, what: str, sizes: Sequence[int], repeats: int
) -> Cost:
    """For each size, time the function that `prepare(size)` returns.

    The result is the fastest of at least `repeats` calls, which take at least a second in total.
    One extra call at the smallest size serves as warm-up. The minimum is used, not the median: the
    sizes are not interleaved, so a disturbance may affect only one of them.
    """
    timed(prepare(sizes[0]))
    seconds = []
    for size in sizes:
        way = prepare(size)
        calls: list[float] = []
        while len(calls) < repeats or sum(calls) < 1.0:
            calls.append(timed(way))
        seconds.append(min(calls))
    return Cost(job, what, list(sizes), seconds)


def timed(way: Way) -> float:
    """Return the seconds that a call takes, or the seconds that it returns."""
    started = time.perf_counter()
    result = way()
    elapsed = time.perf_counter() - started
    return result if isinstance(result, float) else elapsed


def memory_of_process(field: str) -> float:
    """Return VmRSS or VmHWM, the current or peak resident memory, in MB; 0 if unavailable."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(field)), 0.0)


def in_new_process(function: Callable[..., T], *given: Any) -> T:
    """Call a module-level function in a fresh process; its exceptions are raised in this one.

    The process is not forked, because a forked child starts with the peak memory of its parent.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
        return processes.submit(function, *given).result()


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then VmHWM is the peak of the entire run


def load() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """Describe the machine, for the table of results."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = named[0].split(":")[1].strip() if named else model
    packages = (*RECORDED_PACKAGES, "openTSNE", *ALTERNATIVES)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in packages},
    }


def missing(*modules: str) -> str:
    """Return the reason why an alternative cannot be measured here, or "" if it can."""
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    if absent:
        return f"{absent[0]} is not installed (requirements-benchmark.txt)"
    if "torch" in modules and _is_cuda_build():
        return "the CUDA build of PyTorch crashes beside TensorFlow; install the CPU build"
    if "torch" in modules and tf.config.list_physical_devices("GPU"):
        return "PyTorch would use the CPU and TensorFlow the GPU; set CUDA_VISIBLE_DEVICES=-1"
    return ""


def _is_cuda_build() -> bool:
    """Return whether PyTorch is a CUDA build, without importing it, which could crash."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text()
    return not re.search(r"^cuda\b.*= None$", version, re.MULTILINE)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
