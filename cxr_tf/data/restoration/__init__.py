"""Training pairs of the denoising autoencoder: local contrast, and synthetic opacities."""
