"""Scores of a model on a split: tables, predictions, figures and TensorBoard summaries."""
