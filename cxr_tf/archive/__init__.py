"""Scoring of archives: plan, shards, workers, engines (processes, Ray), status, merge."""
