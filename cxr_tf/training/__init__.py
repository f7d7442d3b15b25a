"""What every training shares: optimizer, checkpoints, epochs, precision, distribution."""
