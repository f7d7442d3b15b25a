"""Our speed against what a user would otherwise write, in one run.

pip install -r requirements-benchmark.txt           # the alternatives
python scripts/benchmark.py                         # all rows; minutes each
python scripts/benchmark.py knn occlusion           # these rows
python scripts/benchmark.py memory scaling          # ours alone: peaks of memory, time against size
python scripts/benchmark.py input --data chest_xray --images 500
"""

import sys
from pathlib import Path

# `benchmarks` lies next to `scripts` and is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.config import Benchmark
from cxr_tf import cli


def main(settings: Benchmark) -> None:
    from benchmarks.benchmark import benchmark

    benchmark(settings)


if __name__ == "__main__":
    cli.run(Benchmark, main)
