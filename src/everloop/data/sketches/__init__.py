"""Sketches of columns: cells chosen once from a reference, and counts per cell that can be added."""
