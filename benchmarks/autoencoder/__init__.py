"""Comparison of variants of the autoencoder on validation data."""
