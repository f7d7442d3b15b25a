"""Benchmarks of speed and memory against alternatives; not part of the installed package."""
