"""All five jobs on one catalogue, their report, and the comparison of two studies."""
