"""Embeddings of a trained classifier, their nearest neighbours, and t-SNE."""
