"""Benchmarks of archives: the fault campaign, and measurements of speed and memory."""
