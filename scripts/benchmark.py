"""Benchmark the package against alternatives that a user would write.

pip install -r requirements-benchmark.txt           # the alternatives
python scripts/benchmark.py                         # all benchmarks; minutes each
python scripts/benchmark.py knn occlusion           # these only
python scripts/benchmark.py memory scaling          # no alternative: peak memory, time by size
python scripts/benchmark.py input --data chest_xray --images 500
"""

import sys
from pathlib import Path

# `benchmarks` is next to `scripts` and is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.config import Benchmark
from cxr_tf import cli


def main(settings: Benchmark) -> None:
    from benchmarks.benchmark import benchmark

    benchmark(settings)


if __name__ == "__main__":
    cli.run(Benchmark, main)
