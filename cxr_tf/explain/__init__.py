"""Heatmaps of a classifier's decisions by occlusion and class activation maps."""
