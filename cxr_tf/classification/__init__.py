"""Train one classifier, or compare several."""
