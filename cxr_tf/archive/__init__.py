"""Score archives: plans, shards, workers, engines (processes and Ray), status and merging."""
