"""Train an autoencoder on healthy radiographs and detect anomalies by its residuals.

python scripts/train_autoencoder.py --data chest_xray
python scripts/train_autoencoder.py --data chest_xray --max-false-alarm 0.05
python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim --image-size 64
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("train_autoencoder")
