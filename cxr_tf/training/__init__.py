"""Components of all training jobs: optimizer, checkpoints, epochs, precision, distribution."""
