"""What is measured and how: ways in turn, peaks of memory, time against size, and the machine."""

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


# One measured call: returns the seconds that count as a float, where only a part of it does; what
# else it returns is let go.
Way = Callable[[], object]

ALTERNATIVES = ("torch", "captum", "monai", "tf-explain", "openvino")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each round, and by how many MB a call made the process grow at most."""

    seconds: list[float]
    grown_mb: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Ours against one alternative. `count` things are done in `ours` and in `theirs` seconds."""

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
        """How many times as fast ours is, round by round."""
        return [b / a for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.ratios))

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            **dataclasses.asdict(self),
            "ratio": self.ratio,
            "ratio_lowest": min(self.ratios),
            "ratio_highest": max(self.ratios),
            "reached": self.ratio >= self.at_least,
        }


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory that one way takes; `at_most` is the limit, and None where nothing is asked."""

    job: str
    way: str
    value: float
    unit: str
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether it keeps to the limit."""
        return self.at_most is None or self.value <= self.at_most

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {**dataclasses.asdict(self), "reached": self.reached}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that one of our jobs takes, by size; `what` is counted."""

    job: str
    what: str
    sizes: list[int]
    seconds: list[float]

    @property
    def slope(self) -> float:
        """Exponent p of seconds ~ size^p, the least-squares line through the logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {**dataclasses.asdict(self), "slope": self.slope}


@dataclasses.dataclass(frozen=True)
class Bound:
    """What bounds a ratio: of the machine, a network or a file."""

    job: str
    of: str
    value: float
    unit: str

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that could not be measured, and why."""

    job: str
    alternative: str
    reason: str


Found = Iterator[Row | Memory | Cost | Bound | Skipped]


def in_turn(ways: dict[str, Way], repeats: int, warm_up: bool = True) -> dict[str, Timing]:
    """Times every way `repeats` times, one after the other, the order reversed every round."""
    names = list(ways)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    grown = dict.fromkeys(names, 0.0)
    for number in range(-1 if warm_up else 0, repeats):
        for name in names if number % 2 == 0 else names[::-1]:
            before = memory_of_process("VmRSS")
            _reset_peak()
            spent = timed(ways[name])
            grown[name] = max(grown[name], memory_of_process("VmHWM") - before)
            if number >= 0:
                seconds[name].append(spent)
    return {n: Timing(seconds[n], grown[n]) for n in names}


def by_size(
    prepare: Callable[[int], Way], job: str, what: str, sizes: Sequence[int], repeats: int
) -> Cost:
    """Times what `prepare(size)` returns for each size: the fastest of `repeats` calls.

    Of short calls there are more, a second of them. The smallest size goes first, uncounted: it is
    the warm-up. The fastest and not the median, because a size has no partner in the same round
    with which it would share a disturbance.
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
    """Seconds that a call takes, or those that it tells."""
    started = time.perf_counter()
    told = way()
    spent = time.perf_counter() - started
    return told if isinstance(told, float) else spent


def memory_of_process(field: str) -> float:
    """VmRSS or VmHWM, the present and the highest resident memory, in MB; 0 where not told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(field)), 0.0)


def in_new_process(function: Callable[..., T], *given: Any) -> T:
    """Calls a function of a module in a fresh process; what it raises is raised here.

    A fresh one, because a forked child begins with the memory, and the peak, of its parent.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as processes:
        return processes.submit(function, *given).result()


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then VmHWM is that of the whole run


def load() -> float:
    """How many processes wanted the processor in the last minute."""
    return os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """What it ran on, as a table of results has to say."""
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
    """Why an alternative cannot be measured here; an empty string where it can."""
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    if absent:
        return f"{absent[0]} is not installed (requirements-benchmark.txt)"
    if "torch" in modules and _is_cuda_build():
        return "the CUDA build of PyTorch ends a process with TensorFlow in it; take the CPU build"
    if "torch" in modules and tf.config.list_physical_devices("GPU"):
        return "PyTorch's ways are written for the CPU, and TensorFlow would take the GPU here"
    return ""


def _is_cuda_build() -> bool:
    """Whether PyTorch is; read, because importing it would end the process ("LLVM ERROR")."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    told = Path(found.origin).with_name("version.py").read_text()
    return not re.search(r"^cuda\b.*= None$", told, re.MULTILINE)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
