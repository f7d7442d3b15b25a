"""Runtimes other than TensorFlow in Python that run exported models."""
