"""Measures of change: distances between distributions, tests, and detectors over several columns."""
