"""Predictions of image files by any signature, and the client of TF Serving."""
