"""Our speed against what a user would otherwise write, in one run.

pip install -r requirements-benchmark.txt           # the alternatives
python scripts/benchmark.py                         # all rows; minutes each
python scripts/benchmark.py knn occlusion           # these rows
python scripts/benchmark.py memory scaling          # ours alone: peaks of memory, time against size
python scripts/benchmark.py input --data chest_xray --images 500
"""

from cxr_tf import cli
from cxr_tf.settings import Benchmark


def main(settings: Benchmark) -> None:
    from cxr_tf.benchmark import benchmark

    benchmark(settings)


if __name__ == "__main__":
    cli.run(Benchmark, main)
