"""Commands that evaluate exported models, predict images with them, and convert them."""
