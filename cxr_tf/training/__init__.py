"""Components of every training: optimizer, checkpoints, epochs, precision, distribution."""
