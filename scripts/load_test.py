"""Measure the latency and throughput of exported models on the C++ runtime, and of Keras `predict`.

python scripts/load_test.py                                  # all networks, in both precisions
python scripts/load_test.py --backbones vgg16 --requests 200
"""

import sys
from pathlib import Path

# `benchmarks` is next to `scripts` and is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.config import LoadTest
from cxr_tf import cli


def main(settings: LoadTest) -> None:
    from benchmarks.load.load_test import load_test

    load_test(settings)


if __name__ == "__main__":
    cli.run(LoadTest, main)
