"""Variants of the autoencoder, compared on validation."""
