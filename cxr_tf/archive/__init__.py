"""Scoring of archives: plan, shards, workers, engines for one machine and for Ray, status, merge."""
