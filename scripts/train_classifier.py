"""Train, calibrate, evaluate and export one classifier.

python scripts/train_classifier.py --data chest_xray --backbone vgg16
python scripts/train_classifier.py --data chest_xray --backbone resnet50 --task three_class
python scripts/train_classifier.py --weights none --image-size 64 --epochs 3     # phantoms
"""

from cxr_tf import cli
from cxr_tf.config import TrainClassifier


def main(settings: TrainClassifier) -> None:
    from cxr_tf.classification.train_classifier import train_classifier

    train_classifier(settings)


if __name__ == "__main__":
    cli.run(TrainClassifier, main)
