"""The acquisition of radiographs: statistics, simulated shifts, audit."""
