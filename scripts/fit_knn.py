"""Fit nearest neighbours in a classifier's embedding, export them, and compute a t-SNE.

python scripts/fit_knn.py --classifier logs/classifier/vgg16-binary
python scripts/fit_knn.py --classifier saved_models/vgg16-binary --data chest_xray --name mine
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("fit_knn")
