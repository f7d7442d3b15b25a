"""Nearest neighbours in the embedding of a trained classifier: pickle, SavedModel, t-SNE.

python scripts/fit_knn.py --classifier logs/classifier/vgg16-binary
python scripts/fit_knn.py --classifier saved_models/vgg16-binary --data chest_xray --name mine
"""

from cxr_tf import cli
from cxr_tf.config import FitKnn


def main(settings: FitKnn) -> None:
    from cxr_tf.neighbors.fit_knn import fit_knn

    fit_knn(settings)


if __name__ == "__main__":
    cli.run(FitKnn, main)
