"""Batch scoring: a whole table through a model version, in parts, resumable."""
