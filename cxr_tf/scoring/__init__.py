"""Score a model on a split; write its predictions, figures and TensorBoard summaries."""
