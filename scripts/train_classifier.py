"""Train, calibrate, evaluate and export one classifier.

python scripts/train_classifier.py --data chest_xray --backbone vgg16
python scripts/train_classifier.py --data chest_xray --backbone resnet50 --task three_class
python scripts/train_classifier.py --weights none --image-size 64 --epochs 3     # phantoms
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("train_classifier")
