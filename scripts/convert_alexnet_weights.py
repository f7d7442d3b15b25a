"""Convert torchvision's AlexNet weights to a file for --weights.

pip install torch
curl -LO https://download.pytorch.org/models/alexnet-owt-7be5be79.pth
python scripts/convert_alexnet_weights.py --state-dict alexnet-owt-7be5be79.pth
python scripts/train_classifier.py --backbone alexnet --weights alexnet_notop.weights.h5
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("convert_alexnet_weights")
