"""How radiographs were acquired: statistics, simulated shifts, audit."""
