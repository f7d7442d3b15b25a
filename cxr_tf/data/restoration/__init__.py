"""Training pairs for denoising: radiographs with synthetic opacities, and their local contrast."""
