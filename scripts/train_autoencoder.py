"""Train an autoencoder on healthy radiographs, and detect anomalies with it.

python scripts/train_autoencoder.py --data chest_xray
python scripts/train_autoencoder.py --data chest_xray --operating-point min-specificity:0.95
python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim --image-size 64
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("train_autoencoder")
