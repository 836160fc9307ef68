"""Journals of runs: written by the training process, optionally uploaded, and folded into the store exactly once."""
