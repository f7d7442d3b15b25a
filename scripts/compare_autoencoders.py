"""Train variants of the autoencoder with the same settings, and compare them on validation data.

python scripts/compare_autoencoders.py --data chest_xray
"""

import sys
from pathlib import Path

# `benchmarks` is next to `scripts` and is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.config import CompareAutoencoders
from cxr_tf import cli


def main(settings: CompareAutoencoders) -> None:
    from benchmarks.autoencoder.compare_autoencoders import compare_autoencoders

    compare_autoencoders(settings)


if __name__ == "__main__":
    cli.run(CompareAutoencoders, main)
