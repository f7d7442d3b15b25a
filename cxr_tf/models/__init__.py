"""Keras graphs: backbones, classifiers, autoencoders, occlusion."""
