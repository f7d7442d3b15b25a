"""Commands for exported models of any kind: evaluate on a folder, predict images, convert."""
