"""Train an autoencoder on healthy radiographs and detect anomalies by what it restores.

python scripts/train_autoencoder.py --data chest_xray
python scripts/train_autoencoder.py --data chest_xray --max-false-alarm 0.05
python scripts/train_autoencoder.py --data chest_xray --model plain --score ssim --image-size 64
"""

from cxr_tf import cli
from cxr_tf.config import TrainAutoencoder


def main(settings: TrainAutoencoder) -> None:
    from cxr_tf.anomaly.train_autoencoder import train_autoencoder

    train_autoencoder(settings)


if __name__ == "__main__":
    cli.run(TrainAutoencoder, main)
