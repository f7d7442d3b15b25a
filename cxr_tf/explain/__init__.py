"""Heatmaps of what a decision rests on: occlusion, class activation maps, faithfulness."""
