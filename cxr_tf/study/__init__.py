"""Run studies: all jobs on one data set, the report, and the comparison of two studies."""
