"""Embeddings of a trained classifier, and the nearest neighbours in them.

from cxr_tf.neighbors import load_knn
pipeline, manifest = load_knn("saved_models/vgg16-binary-knn")
"""

from cxr_tf.neighbors.job import fit_knn
from cxr_tf.neighbors.storage import load_knn

__all__ = ["fit_knn", "load_knn"]
