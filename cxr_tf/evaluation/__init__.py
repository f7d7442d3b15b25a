"""Commands for exported models of any kind: evaluate a folder, predict images."""
