"""Export, load, verify and serve models with TF Serving."""
