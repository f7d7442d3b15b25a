"""Train variants of the autoencoder alike, and compare what finds the sick on validation.

python scripts/compare_autoencoders.py --data chest_xray
"""

from cxr_tf import cli
from cxr_tf.settings import CompareAutoencoders


def main(settings: CompareAutoencoders) -> None:
    from cxr_tf.anomaly_comparison import compare

    compare(settings)


if __name__ == "__main__":
    cli.run(CompareAutoencoders, main)
