"""Anomaly detection: an autoencoder trained on healthy radiographs, its scores and threshold."""
