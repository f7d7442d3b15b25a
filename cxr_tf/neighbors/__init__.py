"""Embeddings of a trained classifier, nearest neighbours in them, t-SNE."""
