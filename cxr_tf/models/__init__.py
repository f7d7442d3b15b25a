"""Backbones and the models built on them."""
