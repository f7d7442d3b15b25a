"""Heatmaps of a classifier's decisions: occlusion, class activation maps, faithfulness."""
