"""Train ResNet50, VGG16 and AlexNet alike, choose by validation, report once on test.

python scripts/compare_backbones.py --data chest_xray --task three_class
python scripts/compare_backbones.py --runs logs/classifier/a logs/classifier/b
"""

from cxr_tf import cli
from cxr_tf.config import CompareBackbones


def main(settings: CompareBackbones) -> None:
    from cxr_tf.classification.compare_backbones import compare_backbones

    compare_backbones(settings)


if __name__ == "__main__":
    cli.run(CompareBackbones, main)
