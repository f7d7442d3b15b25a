"""Get a data set, or check one."""
