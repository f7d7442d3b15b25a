"""Comparison of out-of-distribution detectors of a classifier."""
