"""Compare out-of-distribution detectors for a trained classifier.

python scripts/compare_novelty.py --classifier logs/classifier/vgg16-three-class
"""

import sys
from pathlib import Path

# `benchmarks` is next to `scripts` and is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.config import CompareNovelty
from cxr_tf import cli


def main(settings: CompareNovelty) -> None:
    from benchmarks.novelty.compare_novelty import compare_novelty

    compare_novelty(settings)


if __name__ == "__main__":
    cli.run(CompareNovelty, main)
