"""Speed and memory against the alternatives; not part of the installed package."""
