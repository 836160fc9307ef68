"""Batch scoring: scores a large table with a model version, in parts, and resumes after a crash."""
