"""Exact occlusion maps, recomputing only what a patch can change."""
